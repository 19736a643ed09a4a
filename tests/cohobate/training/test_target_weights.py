"""Several targets in one update: each target's mean loss, times its weight."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cohobate.data.examples import Example
from cohobate.losses.divergences import Hard
from cohobate.training.batches import MicroBatches
from cohobate.training.hyperparameters import Freeze, Hyperparameters
from cohobate.training.model_loss import CausalLMLoss
from cohobate.training.target_weights import TargetWeights
from cohobate.training.trainer import fit


def rows(weight: float) -> list[Example]:
    """Short answers and, with another weight, long rationales."""
    rng = np.random.default_rng(0)
    examples = []
    for n in range(6):
        ids = rng.integers(5, 50, 6 if n % 2 else 18).astype(np.int32)
        one = Example.with_answer(f"row-{n}", ids, 4)
        examples.append(one if n % 2 else replace(one, target="rationale", weight=weight))
    return examples


def mean_loss(model, some: list[Example]) -> torch.Tensor:
    """The mean over the tokens of the completions, by transformers."""
    losses = []
    for row in some:
        ids = torch.tensor(row.ids)[None].long()
        logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : -1]
        target = ids[0, row.prompt_length :]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_loss_and_gradient_are_the_weighted_sum_of_means(make_model, tokenizer, weight) -> None:
    model, some = make_model(tokenizer).double(), rows(weight)
    answers = [row for row in some if not row.target]
    rationales = [row for row in some if row.target]
    expected = mean_loss(model, answers) + weight * mean_loss(model, rationales)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    data = MicroBatches(some, [range(4), range(4, 6)], 4, None)  # an update of two micro-batches
    batches = [data[0], data[1]]
    TargetWeights(some).add_to(batches, [data.rows(0), data.rows(1)])
    loss_fn, tokens = CausalLMLoss(model, [Hard()]), sum(row.length for row in some)
    model.zero_grad()
    losses = [loss_fn(**batch, divisor=tokens)[0] for batch in batches]
    torch.testing.assert_close(sum(losses), expected)
    sum(losses).backward()
    for weights, slope in zip(model.parameters(), slopes, strict=True):
        torch.testing.assert_close(weights.grad, slope, rtol=1e-3, atol=1e-5)


def test_training_reports_the_weighted_loss(make_model, tokenizer) -> None:
    model, some = make_model(tokenizer), rows(0.5)
    how = Hyperparameters(
        updates=1, batch_size=6, micro_batch_size=2, threads=1, precision="float32",
        learning_rate=1e-9, freeze=Freeze(embeddings=False),
    )  # fmt: skip
    with torch.no_grad():
        parts = [mean_loss(model, [r for r in some if bool(r.target) is b]) for b in (False, True)]
    (update,) = fit(model, some, [Hard()], how, seed=1, label="a test")
    assert update.loss == pytest.approx(float(parts[0] + 0.5 * parts[1]), rel=1e-4)


def test_one_target_is_left_as_it_is(make_model, tokenizer) -> None:
    plain = [replace(row, target="", weight=1.0) for row in rows(1.0)]
    data = MicroBatches(plain, [range(6)], 6, None)
    batch = data[0]
    TargetWeights(plain).add_to([batch], [data.rows(0)])
    assert "weight_N" not in batch
