"""Speculative decoding: a student drafts tokens, its teacher checks them in one pass.

Leviathan et al. 2023, section 2, greedy, as transformers' assisted generation has it: the answers
are those of the teacher alone. Measured a prompt at a time, teacher alone and pair in turns,
up to the end of the answer; the figures vary from run to run.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cohobate.params import Section

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Drafting(Section):
    """How the student drafts."""

    tokens: int = Field(5, ge=1)
    """Most tokens that the student drafts for a pass of the teacher; it stops earlier where its
    confidence is below transformers' `assistant_confidence_threshold`."""
    new_tokens: int = Field(64, ge=1)
    """Most tokens of an answer. Answers of a few tokens leave nothing to gain."""
    rows: int = Field(8, ge=1)
    """Test prompts that are answered."""

    def measure(
        self,
        teacher: "PreTrainedModel",
        student: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[Sequence[int]],
    ) -> dict[str, Any]:
        """Return tokens a second of both, the share of drafted tokens that the teacher accepts, and
        the share of answers with the same tokens.

        Args:
            teacher: a causal model.
            student: one with the same vocabulary.
            tokenizer: of both.
            prompts: token ids of the prompts.
        """
        import torch

        seconds, tokens = {"teacher": 0.0, "pair": 0.0}, {"teacher": 0, "pair": 0}
        passes = drafted = same = 0
        config = student.generation_config
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = self.tokens, "constant"
        prompts = [prompt for prompt in prompts if prompt][: self.rows]
        for number, prompt in enumerate([*prompts[:1], *prompts]):
            ids_BS = torch.tensor([list(prompt)], device=teacher.device)
            answers = {}
            with _counted(teacher) as of_teacher, _counted(student) as of_student:
                for name, assistant in (("teacher", None), ("pair", student)):
                    before, start = of_teacher[0], time.perf_counter()
                    answers[name] = self._answer(teacher, tokenizer, ids_BS, assistant)
                    if number:  # the first prompt warms both up
                        seconds[name] += time.perf_counter() - start
                        tokens[name] += len(answers[name])
                        passes += (of_teacher[0] - before) if assistant else 0
            if number:
                drafted += of_student[0]
                same += answers["teacher"] == answers["pair"]
        alone, pair = (tokens[name] / max(seconds[name], 1e-9) for name in seconds)
        accepted = tokens["pair"] - passes  # each pass adds a token of the teacher's own
        return {
            "tokens_per_second": {"teacher": round(alone, 1), "pair": round(pair, 1)},
            "speedup": round(pair / alone, 3) if alone else None,
            "acceptance": round(accepted / drafted, 4) if drafted else None,
            "tokens_a_pass": round(tokens["pair"] / max(passes, 1), 3),
            "same_answers": round(same / max(len(prompts), 1), 4),
            "answer_tokens": tokens["teacher"],
            "drafted_at_once": self.tokens,
        }

    def _answer(
        self,
        teacher: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        ids_BS: "torch.Tensor",
        assistant: "PreTrainedModel | None",
    ) -> list[int]:
        import torch

        from cohobate.data.tokenized import closing_ids

        ends = sorted(closing_ids(tokenizer))
        with torch.inference_mode():
            generated = teacher.generate(
                ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                do_sample=False,
                max_new_tokens=self.new_tokens,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
                assistant_model=assistant,
            )
        return [*map(int, generated[0, ids_BS.shape[1] :])]


@contextmanager
def _counted(model: "PreTrainedModel") -> Iterator[list[int]]:
    """Yield a list of one number: how often the model was run within the block."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handle = model.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()
