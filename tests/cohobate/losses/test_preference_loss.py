"""Preference losses: loss and gradient against TRL's DPOTrainer, for every loss type."""

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from cohobate.data.examples import Example
from cohobate.losses.preferences import LossType
from cohobate.methods.preference_loss import PreferenceLoss
from cohobate.methods.reference_logprobs import ReferenceLogprobs, pair_batches

PAIRS = 5


def answers(seed: int) -> list[Example]:
    """Answers of unlike lengths; the prompts of both sides are the same."""
    examples = []
    for n in range(PAIRS):
        prompt = np.random.default_rng(n).integers(5, 50, 3 + n)
        answer = np.random.default_rng([seed, n]).integers(5, 50, 1 + (n + seed) % 4)
        ids = np.concatenate([prompt, answer]).astype(np.int32)
        examples.append(Example.with_answer(f"pair-{n}", ids, len(prompt)))
    return examples


def step_of_trl(model: Any, tokenizer: Any, scratch: Any, **options: Any) -> tuple[float, Any]:
    chosen, rejected = answers(1), answers(2)
    columns = {
        "prompt_ids": [row.ids[: row.prompt_length].tolist() for row in chosen],
        "chosen_ids": [row.ids[row.prompt_length :].tolist() for row in chosen],
        "rejected_ids": [row.ids[row.prompt_length :].tolist() for row in rejected],
        "ref_chosen_logps": [-10.0 - n for n in range(PAIRS)],
        "ref_rejected_logps": [-9.0 - 2 * n for n in range(PAIRS)],
    }

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    arguments = DPOConfig(
        output_dir=str(scratch),
        use_cpu=True,
        report_to="none",
        precompute_ref_log_probs=True,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        **options,
    )
    data = Dataset.from_dict(columns)
    trainer = Trainer(
        model, args=arguments, train_dataset=data, processing_class=copy.deepcopy(tokenizer)
    )
    loss = trainer.compute_loss(model.train(), trainer.data_collator([data[n] for n in range(5)]))
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters()}


def step_of_ours(model: Any, loss_type: Any, **options: Any) -> tuple[float, dict[str, Tensor]]:
    chosen, rejected = answers(1), answers(2)
    reference = ReferenceLogprobs.__new__(ReferenceLogprobs)
    reference._of_pair = {f"pair-{n}": (-10.0 - n, -9.0 - 2 * n) for n in range(PAIRS)}
    loss_fn = PreferenceLoss(model, loss_type, reference, chunk_tokens=4, **options)
    batch = pair_batches(chosen, rejected, [range(PAIRS)], PAIRS, reference)[0]
    loss, losses_NF = loss_fn.train()(**batch, divisor=loss_fn.count(batch))
    loss.backward()
    assert float(losses_NF.sum() / PAIRS) == pytest.approx(float(loss), rel=1e-5)
    return float(loss), {name: p.grad for name, p in model.named_parameters()}


CASES = [
    ({name: 1.0}, smoothing)
    for name in get_args(LossType)
    for smoothing in ((0.1,) if name == "exo_pair" else (0.0, 0.1))
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("loss_type", "smoothing"), [*CASES, ({"sigmoid": 1.0, "sft": 0.3}, 0.0)])
def test_loss_and_gradient_are_those_of_trl(
    make_model: Any, tokenizer: Any, tmp_path: Any, loss_type: Any, smoothing: float
) -> None:
    options = {"beta": 0.3, "label_smoothing": smoothing}
    weights = list(loss_type.values())
    expected, grads = step_of_trl(
        make_model(tokenizer),
        tokenizer,
        tmp_path,
        loss_type=list(loss_type),
        loss_weights=weights,
        **options,
    )
    loss, own = step_of_ours(make_model(tokenizer), loss_type, **options)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == own.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(own[name], grad, rtol=1e-3, atol=1e-5, msg=name)
