"""How close a student's next-token distribution is to the teacher's, on the teacher's answers.

Both models read the test prompts followed by the teacher's own greedy answers; their distributions
are compared at every token of the answer and at its end.

Shapes: B batch, S sequence, V vocabulary, N answer tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.params import Section
from tasks.records import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.text import Batch


class Fidelity(Section):
    """Agreement of a student with the teacher, token by token."""

    top1_agreement: float
    """Share of the tokens at which both models rank the same token first."""
    kl: float
    """Mean of KL(teacher ‖ student) in nats a token."""
    tokens: int
    """How many tokens were compared."""


def compare(
    teacher: "PreTrainedModel",
    student: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    batch: int,
) -> Fidelity:
    """Compare two models with one vocabulary on `rows`, which carry the teacher's answers."""
    import torch

    from tasks.text import collate, encode_all

    encoded = sorted(encode_all(tokenizer, rows), key=lambda row: len(row.prompt_ids))
    same = kl = tokens = 0.0
    with torch.inference_mode():
        for start in range(0, len(encoded), batch):
            packed = collate(encoded[start : start + batch], fill=tokenizer.eos_token_id)
            p_NV = _answer_log_probs(teacher, packed, len(tokenizer))
            q_NV = _answer_log_probs(student, packed, len(tokenizer))
            same += float((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
            kl += float((p_NV.exp() * (p_NV - q_NV)).sum())
            tokens += len(p_NV)
    return Fidelity(
        top1_agreement=round(same / tokens, 6), kl=round(kl / tokens, 6), tokens=int(tokens)
    )


def _answer_log_probs(model: "PreTrainedModel", packed: "Batch", vocabulary: int) -> "Tensor":
    """Return the log-probabilities of the real ids where the next token is the answer's, (N, V)."""
    from tasks.text import NOT_A_TARGET

    answer_BS = packed.targets_BS != NOT_A_TARGET
    first = int(answer_BS.any(dim=0).nonzero()[0])  # no row's answer starts before
    keep = answer_BS.shape[1] - first
    logits_BSV = model(
        input_ids=packed.ids_BS.to(model.device), use_cache=False, logits_to_keep=keep
    ).logits
    logits_NV = logits_BSV[answer_BS[:, first:].to(model.device), :vocabulary]
    return logits_NV.float().log_softmax(-1)  # type: ignore[no-any-return]
