"""Teachers of another tokenizer: alignment, the loss beside TRL's, and a phase from end to end."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from cohobate.data.records import ADAPT, INIT_STUDENT, LABELLED, TRAIN, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.losses.cross_tokenizer_targets import CrossTokenizerTargets
from cohobate.losses.divergences import Hard
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.targets import Targets
from cohobate.losses.top_k import TopK
from cohobate.losses.uld import Uld, align
from cohobate.methods.kd import Kd
from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from tasks.train.stage import run
from tests.tiny_models import SPECIAL

STUDENT_SPANS = [(0, 1), (1, 3), (3, 4), (4, 6)]
TEACHER_SPANS = [(0, 3), (3, 4), (4, 5), (5, 6)]
GROUPS = [[0, 0, 1, 2], [0, 1, 2, 2]]
STUDENT_WORDS = {c: n for n, c in enumerate("abcdefghijk")}
TEACHER_WORDS = {c: n for n, c in enumerate("kbxdyfzhw")}


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def crossed(teacher: Tensor) -> CrossTokenizerTargets:
    shared = [(n, TEACHER_WORDS[w]) for w, n in STUDENT_WORDS.items() if w in TEACHER_WORDS]
    ours, theirs = torch.tensor(shared).unbind(-1)
    groups = (torch.tensor(g) for g in GROUPS)
    eye = Head(torch.eye(teacher.shape[-1], dtype=teacher.dtype))
    return CrossTokenizerTargets(teacher, eye, torch.tensor([3, 1, 4, 2]), *groups, (ours, theirs))


def test_groups_end_where_both_sides_end() -> None:
    assert list(align(STUDENT_SPANS, TEACHER_SPANS)) == GROUPS
    same = [(0, 2), (2, 5), (5, 6)]
    assert align(same, same) == ([0, 1, 2], [0, 1, 2])
    # a character of two tokens ends with the second of them, wherever the other side has it whole
    assert align([(0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)]) == ([0, 0, 1], [0, 1])
    assert align([(0, 1), (0, 1)], [(0, 1), (0, 1), (0, 1)]) == ([0, 0], [0, 0, 0])


@pytest.mark.parametrize("shared", ["exact", "sorted"])
def test_loss_and_gradient_are_those_of_trl(shared: str) -> None:
    from trl.experimental.gold.gold_trainer import ULDLoss

    student, teacher = random(4, 11, seed=1).requires_grad_(), random(4, 9, seed=2)
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=shared == "exact",
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=0.5,
    )
    words = [SimpleNamespace(get_vocab=lambda w=w: w) for w in (STUDENT_WORDS, TEACHER_WORDS)]
    ids = [torch.tensor([[0, 5, 6, 7, 8]]), torch.tensor([[0, 3, 1, 4, 2]])]
    labels = [torch.tensor([[-100, *x[0, 1:].tolist()]]) for x in ids]
    offsets = [torch.tensor([[(0, 0), *x]]) for x in (STUDENT_SPANS, TEACHER_SPANS)]
    padded = [torch.cat([x, x[:1]])[None] for x in (student, teacher)]
    expected = ULDLoss(config, *words)(*padded, *labels, *ids, *offsets)
    (grad,) = torch.autograd.grad(expected, student)

    term = Uld(type="uld", shared=shared)
    eye = Head(torch.eye(11, dtype=torch.float64))
    targets = Targets(ids[0][0, 1:], crossed(teacher))
    for chunk in (1, 2, 512):  # groups stay whole
        loss, losses = fused_head_loss(student, eye, [term], targets, divisor=3, chunk_tokens=chunk)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        (actual,) = torch.autograd.grad(loss, student)
        assert (actual - grad).norm() / grad.norm() < 1e-5
        assert (losses[:, 0] > 0).tolist() == [False, True, True, True]


@pytest.mark.usefixtures("one_thread")
def test_gradcheck() -> None:
    targets = Targets(torch.tensor([5, 6, 7, 8]), crossed(random(4, 9, seed=2)))
    hidden, weight = random(4, 3, seed=3).requires_grad_(), random(11, 3, seed=4).requires_grad_()
    terms = [Uld(type="uld", temperature=2), Hard(weight=0.5)]

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_head_loss(hidden, Head(weight), terms, targets, divisor=4, chunk_tokens=3)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_one_tokenizer_twice_gives_no_loss_where_the_models_are_one() -> None:
    logits = random(3, 11, seed=5)
    every = torch.arange(11)
    same = CrossTokenizerTargets(
        logits,
        Head(torch.eye(11, dtype=torch.float64)),
        torch.tensor([1, 2, 3]),
        torch.arange(3),
        torch.arange(3),
        (every, every),
    )
    targets = Targets(torch.tensor([1, 2, 3]), same)
    eye = Head(torch.eye(11, dtype=torch.float64))
    loss, _ = fused_head_loss(logits, eye, [Uld(type="uld")], targets, divisor=3)
    assert float(loss) == pytest.approx(0, abs=1e-12)


def test_stored_signals_are_refused() -> None:
    stored = TopK(torch.tensor([[1]]), torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(UserError, match="aligned by its own tokenizer"):
        fused_head_loss(
            random(1, 3, seed=0),
            Head(random(11, 3, seed=1)),
            [Uld(type="uld")],
            Targets(torch.tensor([1]), stored),
            divisor=1,
        )


@pytest.fixture
def two_tokenizers(project, make_model, make_tokenizer):
    """A teacher that splits words otherwise than the student, and rows."""
    ours, theirs = make_tokenizer(), make_tokenizer(vocabulary=280, special=SPECIAL[::-1])
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(10)]
    answers = [" animal ü plant" if n % 3 else " a small person" for n in range(10)]
    rows = [Row(id=row_id(p), prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True)]
    write_rows(LABELLED, rows)
    checkpoints.save(make_model(theirs, seed=1), theirs, ADAPT / "main", {})
    checkpoints.save(make_model(ours, seed=2, layers=2), ours, INIT_STUDENT, {})
    return ours, theirs


def phase(**changes: object) -> Kd:
    fields = {
        "method": "kd",
        "from": "init_student",
        "rows": "data/collect/labelled.jsonl",
        "targets": "models/adapt/main",
        "terms": [{"type": "uld"}, {"type": "hard", "weight": 0.1}],
        "teacher_precision": "float32",
        "updates": 20,
        "batch_size": 5,
        "micro_batch_size": 3,
        "learning_rate": 0.01,
        "threads": 1,
        "precision": "float32",
    }
    kd: Kd = TypeAdapter(Kd).validate_python(fields | changes)
    return kd


def test_a_phase_learns_from_a_teacher_of_another_tokenizer(two_tokenizers) -> None:
    ours, theirs = two_tokenizers
    assert len(ours) != len(theirs)
    assert len(ours(" animal")["input_ids"]) != len(theirs(" animal")["input_ids"])
    run("kd", phase(), seeds=[1])
    lines = (TRAIN / "kd/seed-1/history.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[1]) for line in lines]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_what_needs_one_tokenizer_is_refused(two_tokenizers) -> None:
    with pytest.raises(UserError, match=r"id 0 is .* to the student"):
        run("kd", phase(terms=[{"type": "forward_kl"}]), seeds=[1])
    with pytest.raises(UserError, match="goes with hard terms alone"):
        run("kd", phase(terms=[{"type": "uld"}, {"type": "forward_kl"}]), seeds=[1])
