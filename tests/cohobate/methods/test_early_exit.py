"""Early exits: their loss against a float64 reference; what is published; refusals."""

import pytest
import torch

from cohobate.data.records import ADAPT, TRAIN
from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.training.batches import MicroBatches
from tasks.evaluate.arms import arms_on_disk
from tasks.train.stage import run
from tests.cohobate.methods.test_on_policy import prompts
from tests.tasks.train.test_train import SFT, digests, history, phase, round_so_far

__all__ = ["round_so_far"]
EXIT = SFT | {
    "updates": 3,
    "method": "early_exit",
    "from": "adapt/main",
    "exits": [2, 3],
    "keep_whole": True,
}


def test_the_first_exit_is_the_student_and_the_whole_model_lies_beside(round_so_far) -> None:
    runs = []
    for _ in range(2):
        run("here", phase(**EXIT), seeds=[1])
        runs.append(digests(TRAIN / "here"))
    assert runs[0] == runs[1], "the same params give the same bytes"
    lines = history("here", 1)
    assert float(lines[-1]["loss"]) < float(lines[0]["loss"])
    assert {"hard_at_2", "forward_kl_at_3", "hard"} < set(lines[0])
    student, _ = checkpoints.load(TRAIN / "here/seed-1")
    whole, _ = checkpoints.load(TRAIN / "here/whole/seed-1")
    started, _ = checkpoints.load(ADAPT / "main")
    assert (student.config.num_hidden_layers, whole.config.num_hidden_layers) == (2, 4)
    # the plain model of two blocks is the exit: its blocks, last norm and head are the whole one's
    for ours, theirs in zip(student.model.layers, whole.model.layers, strict=False):
        assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    assert torch.equal(student.model.norm.weight, whole.model.norm.weight)
    deepest = whole.model.layers[3].mlp.up_proj.weight
    assert not torch.equal(deepest, started.model.layers[3].mlp.up_proj.weight)
    run("baseline", phase(**SFT), seeds=[1])
    arms = {arm.name: arm.role for arm in arms_on_disk("main", "baseline", "here", [1])}
    assert arms["here"] == "student" and arms["here-whole"] == "other"


def test_loss_and_gradients_are_those_of_the_paper(make_model, tokenizer) -> None:
    """In float64: cross-entropy at each depth, and KL from the deepest, which gets no gradient."""
    from cohobate.methods.early_exit_loss import EarlyExitLoss

    model = make_model(tokenizer).double()
    batch = MicroBatches(prompts(), [range(6)], 6, None)[0]
    valid = len(batch["labels_N"])
    exits = EarlyExitLoss(model, [1, 3], [Hard(), ForwardKL(weight=0.5)])
    loss, losses_NF = exits(**batch, divisor=valid)
    assert losses_NF.shape == (valid, len(exits.names))
    weights = [block.mlp.up_proj.weight for block in model.model.layers]
    weights += [model.model.norm.weight, model.lm_head.weight]
    grads = torch.autograd.grad(loss, weights)
    out = model(batch["ids_BS"], output_hidden_states=True)
    states = [model.model.norm(out.hidden_states[n]) for n in (1, 3)] + [out.hidden_states[4]]
    logs = [
        model.lm_head(state).flatten(0, 1)[batch["positions_N"]].log_softmax(-1) for state in states
    ]
    total = -sum(log.gather(-1, batch["labels_N"][:, None]).sum() for log in logs)
    p = logs[-1].detach()
    total = total + sum(0.5 * (p.exp() * (p - log)).sum() for log in logs[:-1])
    torch.testing.assert_close(loss, total / valid)
    expected = torch.autograd.grad(total / valid, weights)
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exits": []}, "at least 1"),
        ({"exits": [3, 2]}, "must ascend"),
        ({"targets": "data/capture/main"}, "targets must be"),
        ({"terms": [{"type": "hard"}]}, "hard term"),
        ({"dev": {"every": 2}}, "dev would score"),
        ({"adapter": {"type": "lora", "save_adapter": True}}, "leave out save_adapter"),
    ],
)
def test_mistakes_in_params_are_explained(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, EXIT | change, "train.here")


def test_an_exit_needs_a_deeper_layer(round_so_far) -> None:
    with pytest.raises(UserError, match="after block 4 of 4"):
        run("here", phase(**EXIT | {"exits": [4]}), seeds=[1])
