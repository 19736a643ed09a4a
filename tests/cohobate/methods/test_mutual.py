"""Mutual learning: each peer's loss against a float64 reference; what is published; refusals."""

import pytest
import torch

from cohobate import sealed_folder
from cohobate.data.records import ADAPT, TRAIN
from cohobate.losses.divergences import ForwardKL, Hard
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.training.batches import MicroBatches
from tasks.train.stage import run
from tests.cohobate.methods.test_on_policy import prompts
from tests.tasks.train.test_train import SFT, digests, history, phase, round_so_far

__all__ = ["round_so_far"]
MUTUAL = SFT | {
    "method": "mutual",
    "from": "adapt/main",
    "peers": [{"keep_layers": [0, 1]}, {"keep_layers": [0, 3]}],
    "keep_peers": True,
}


def test_peers_are_trained_and_the_first_is_the_student(round_so_far) -> None:
    runs = []
    for _ in range(2):
        run("here", phase(**MUTUAL), seeds=[1])
        runs.append(digests(TRAIN / "here"))
    assert runs[0] == runs[1], "the same params give the same bytes"
    lines = history("here", 1)
    assert float(lines[-1]["loss"]) < float(lines[0]["loss"])
    for folder in ("seed-1", "peer-2/seed-1"):
        sealed_folder.verify(TRAIN / "here" / folder)
        model, _ = checkpoints.load(TRAIN / "here" / folder)
        assert model.config.num_hidden_layers == 2
    run("on", phase(**SFT | {"from": "train/here/peer-2"}), seeds=[1])
    run("here", phase(**MUTUAL | {"keep_peers": False}), seeds=[1])
    assert not (TRAIN / "elsewhere/peer-2").exists()


def test_a_teacher_may_be_trained_beside_its_student(round_so_far) -> None:
    peers = [{"keep_layers": {"uniform": 2}}, {"imitates": False}]
    run("both", phase(**MUTUAL | {"peers": peers}), seeds=[1])
    teacher, _ = checkpoints.load(TRAIN / "both/peer-2/seed-1")
    assert teacher.config.num_hidden_layers == 4
    assert checkpoints.fingerprint(ADAPT / "main") != checkpoints.fingerprint(
        TRAIN / "both/peer-2/seed-1"
    )


def test_jitter_makes_peers_of_one_start_and_seed(round_so_far) -> None:
    peers = [{"keep_layers": [0, 1]}, {"keep_layers": [0, 1], "jitter": 0.1}]
    run("here", phase(**MUTUAL | {"peers": peers}), seeds=[1, 2])
    assert digests(TRAIN / "here/seed-1") != digests(TRAIN / "here/peer-2/seed-1")
    assert digests(TRAIN / "here/peer-2/seed-1") != digests(TRAIN / "here/peer-2/seed-2")


def test_every_peer_is_trained_by_low_rank_updates(round_so_far) -> None:
    lora = {"adapter": {"type": "lora", "rank": 2}}
    run("here", phase(**MUTUAL | lora), seeds=[1])
    started, _ = checkpoints.load(ADAPT / "main")
    for folder, last in (("seed-1", 1), ("peer-2/seed-1", 3)):
        model, _ = checkpoints.load(TRAIN / "here" / folder)
        ours, theirs = model.model.layers[1], started.model.layers[last]
        assert ours.input_layernorm.weight.equal(theirs.input_layernorm.weight)
        change = (ours.mlp.up_proj.weight - theirs.mlp.up_proj.weight).float()
        assert int((torch.linalg.svdvals(change) > 0.05).sum()) == 2  # saved in bfloat16


@pytest.mark.parametrize("count", [2, 3])
def test_loss_and_gradients_are_those_of_the_paper(make_model, tokenizer, count) -> None:
    """In float64: cross-entropy plus the mean KL from each other peer, which gets no gradient."""
    from cohobate.methods.mutual_loss import MutualLoss

    peers = [make_model(tokenizer, seed=n).double() for n in range(count)]
    batch = MicroBatches(prompts(), [range(6)], 6, None)[0]
    valid = len(batch["labels_N"])
    cohort = MutualLoss(peers, [Hard(), ForwardKL(weight=0.5)], [True] * (count - 1) + [False])
    loss, _ = cohort(**batch, divisor=valid)
    weights = [peer.model.layers[0].mlp.up_proj.weight for peer in peers]
    grads = torch.autograd.grad(loss, weights)
    logs = [
        peer(batch["ids_BS"]).logits.flatten(0, 1)[batch["positions_N"]].log_softmax(-1)
        for peer in peers
    ]
    for n, logq in enumerate(logs):
        total = -logq.gather(-1, batch["labels_N"][:, None]).sum()
        for m, other in enumerate(logs):
            if m != n and n < count - 1:
                p = other.detach()
                total = total + 0.5 * (p.exp() * (p - logq)).sum() / (count - 1)
        if n == 0:
            torch.testing.assert_close(loss, total / valid)
        (expected,) = torch.autograd.grad(total / valid, weights[n], retain_graph=True)
        torch.testing.assert_close(grads[n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers": [{}]}, "at least 2"),
        ({"peers": [{}, {}]}, "would stay the same"),
        ({"targets": "data/capture/main"}, "targets must be"),
        ({"keep_layers": [0]}, "its own keep_layers"),
        ({"terms": [{"type": "forward_kl"}]}, "hard term"),
    ],
)
def test_mistakes_in_params_are_explained(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, MUTUAL | change, "train.here")
