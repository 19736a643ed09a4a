"""On-policy training: the student's own answers, by whose weights, and what becomes of them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cohobate import sealed_folder
from cohobate.data.examples import Example
from cohobate.data.records import ADAPT, INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.generation.decoding import plan_batches
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.methods.rollout_generators import SPREAD, cached_casts
from cohobate.methods.rollout_settings import (
    AdaptiveShare,
    ConstantShare,
    OnPolicySchedule,
    Sampling,
)
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from tasks.train.stage import run
from tests.tasks.train.test_train import SFT, digests, history, phase, round_so_far

__all__ = ["round_so_far"]
ON_POLICY = SFT | {
    "method": "on_policy",
    "targets": "models/adapt/main",
    "student_text": {"type": "constant", "share": 0.5},
    "sampling": {"decoding": {"max_tokens": 6, "temperature": 1}},
}


def prompts(rows: int = 6) -> list[Example]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, rows)
    return [
        Example.with_answer(f"row-{n}", rng.integers(5, 50, size).astype(np.int32), int(size) - 2)
        for n, size in enumerate(lengths)
    ]


def text_of(model: Any, tokenizer: Any, schedule: OnPolicySchedule, **options: Any) -> Any:
    from cohobate.methods.rollouts import StudentRollouts

    how = {"decoding": {"max_tokens": 6, "temperature": 1}} | options.pop("sampling", {})
    sampling = Sampling.model_validate(how)
    settings = {"seed": 1, "updates": 10} | options
    return StudentRollouts(model, tokenizer, sampling, schedule, **settings)


def ids(rows: Sequence[Example]) -> list[list[int]]:
    return [row.ids.tolist() for row in rows]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_phase_learns_from_both_kinds_of_text(round_so_far, share) -> None:
    fields = ON_POLICY | {"updates": 12, "student_text": {"type": "constant", "share": share}}
    runs = []
    for _ in range(2):
        run("here", phase(**fields), seeds=[1])
        runs.append(digests(TRAIN / "here"))
    assert runs[0] == runs[1], "the same params give the same bytes"
    sealed_folder.verify(TRAIN / "here/seed-1")
    lines = history("here", 1)
    assert len(lines) == 12 and all(float(line["loss"]) > 0 for line in lines)
    summary = json.loads((TRAIN / "here/summary.json").read_text())
    own = summary.get("updates on new text, seed 1", 0)
    assert own + summary.get("updates on given text, seed 1", 0) == 12 == summary["updates"]
    assert {0.0: own == 0, 0.5: 0 < own < 12, 1.0: own == 12}[share]
    assert summary.get("answers, seed 1", 0) == 4 * own


def test_the_student_comes_closer_to_the_teacher_on_its_own_text(round_so_far) -> None:
    fields = ON_POLICY | {"updates": 50, "student_text": {"type": "constant", "share": 1.0}}
    run("here", phase(**fields | {"freeze": {"embeddings": False}}), seeds=[1])
    losses = [float(line["loss"]) for line in history("here", 1)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_the_loss_is_the_divergence_from_the_live_teacher(make_model, tokenizer) -> None:
    """Against a float64 reference over the whole vocabulary, token by token."""
    from cohobate.losses.divergences import ReverseKL
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training.batches import MicroBatches
    from cohobate.training.model_loss import CausalLMLoss

    student, teacher = make_model(tokenizer, seed=1), make_model(tokenizer, seed=2)
    rows = text_of(student, tokenizer, ConstantShare()).generate(prompts(), "a draw")
    live = LiveSource({"main": teacher}, len(tokenizer))
    batch = MicroBatches(rows, [range(len(rows))], len(rows), live)[0]
    valid = len(batch["labels_N"])
    loss, _ = CausalLMLoss(student, [ReverseKL()], target_source=live)(**batch, divisor=valid)
    total = 0.0
    for row in rows:
        logq, logp = (
            m.double()(torch.tensor([row.ids[:-1].tolist()])).logits[0].detach().log_softmax(-1)
            for m in (student, teacher)
        )
        per_token = (logq.exp() * (logq - logp)).sum(-1)
        total += float(per_token[row.prompt_length - 1 :].sum())
        student.float(), teacher.float()
    assert float(loss.detach()) == pytest.approx(total / valid, rel=1e-4)


def test_answers_are_those_of_the_students_weights_right_now(model, tokenizer) -> None:
    text = text_of(model, tokenizer, ConstantShare(share=1))
    before = text.rows(0, prompts())
    assert ids(before) == ids(text.rows(0, prompts()))
    assert ids(before) != ids(text.rows(1, prompts())), "every update draws anew"
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    assert ids(before) != ids(text.rows(0, prompts()))


def test_writing_leaves_the_mode_of_training_alone(model, tokenizer) -> None:
    text = text_of(model.train(), tokenizer, ConstantShare(share=1))
    text.rows(0, prompts())
    assert model.training


def test_an_update_is_answered_in_few_batches(model) -> None:
    lengths = [5, 90, 5 + SPREAD, 7, 5 + SPREAD + 1]
    requests = [Request([1] * length) for length in lengths]
    how = Decoding(max_tokens=16)
    assert plan_batches(requests, how, Batching(), near=SPREAD) == [[0, 3, 2], [4], [1]]
    assert plan_batches(requests, how, Batching(rows=2), near=SPREAD) == [[0, 3], [2, 4], [1]]


def test_frozen_weights_are_frozen_again_after_an_answer(model) -> None:
    model.get_input_embeddings().requires_grad_(False)
    with cached_casts(model):
        assert all(weight.requires_grad for weight in model.parameters())
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def test_prompts_stay_and_answers_are_marked(model, tokenizer) -> None:
    planned = prompts()
    written = {
        row.key: row for row in text_of(model, tokenizer, ConstantShare()).generate(planned, "x")
    }
    for row in planned:
        answer = written[row.key]
        assert answer.by_student and not row.by_student
        assert answer.ids[: row.prompt_length].tolist() == row.ids[: row.prompt_length].tolist()
        assert 0 < answer.length <= 6


@pytest.mark.parametrize("unfinished", ["learn", "mask"])
def test_unfinished_answers_are_counted_and_may_be_masked(model, tokenizer, unfinished) -> None:
    text = text_of(model, tokenizer, ConstantShare(), sampling={"unfinished": unfinished})
    written = text.generate(prompts(40), "x")
    cut = [row for row in written if row.ids[-1] not in text.generator.stop]
    ended = [row for row in written if row.ids[-1] in text.generator.stop]
    assert ended and cut and text.counts["unfinished answers"] == len(cut)
    assert text.counts["answers"] == 40
    assert all((row.length == 0) == (unfinished == "mask") for row in cut)
    assert all(row.length > 0 for row in ended)


def test_old_answers_are_taken_again_and_ever_more_often(model, tokenizer) -> None:
    text = text_of(model, tokenizer, ConstantShare(share=1), sampling={"replay": 6}, updates=40)
    seen: set[tuple[int, ...]] = set()
    early, late = 0, 0
    for update in range(40):
        replayed = text.counts["updates on replayed text"]
        rows = {tuple(row) for row in ids(text.rows(update, prompts()))}
        if text.counts["updates on replayed text"] > replayed:
            assert rows <= seen
            early, late = early + (update < 20), late + (update >= 20)
        seen |= rows
        assert len(text.buffer) <= 6
    assert late > early


def test_an_update_beside_the_given_text_is_no_larger(model, tokenizer) -> None:
    text = text_of(model, tokenizer, ConstantShare(share=1), mix_given=True)
    rows = text.rows(0, prompts(6))
    assert len(rows) == 6 and sum(row.by_student for row in rows) == 3
    keys = [sorted(row.key for row in rows if row.by_student == own) for own in (True, False)]
    assert keys[0] == keys[1], "each prompt once as given, once as the student answers it"


def test_the_share_rises_when_the_held_out_loss_does() -> None:
    schedule = AdaptiveShare(start=0.2, step=0.3, tolerance=0.1)
    share = schedule.next_share(0.0, [2.0])
    assert share == 0.2
    assert schedule.next_share(share, [2.0, 2.05]) == 0.2, "within the tolerance"
    assert schedule.next_share(share, [2.0, 1.0]) == 0.2
    assert schedule.next_share(share, [2.0, 1.0, 1.2]) == pytest.approx(0.5)
    assert schedule.next_share(0.9, [1.0, 2.0]) == 1.0


def test_the_held_out_loss_is_that_of_transformers(model, tokenizer) -> None:
    rows = prompts(5)
    text = text_of(model, tokenizer, AdaptiveShare(every=2), held_out=rows)
    for update in range(5):
        text.rows(update, rows)
    assert len(text.losses) == 3
    total = 0.0
    for row in rows:
        with torch.no_grad():
            logq = model(torch.tensor([row.ids[:-1].tolist()])).logits[0].log_softmax(-1)
        for at in range(row.prompt_length, len(row.ids)):
            total -= float(logq[at - 1, int(row.ids[at])])
    assert text.losses[0] == pytest.approx(total / sum(row.length for row in rows), rel=1e-4)


def test_held_out_rows_are_not_learnt_from(round_so_far) -> None:
    adaptive = {"type": "adaptive", "held_out": 4, "every": 2, "start": 0.5}
    run("here", phase(**ON_POLICY | {"student_text": adaptive}), seeds=[1])
    assert json.loads((TRAIN / "here/summary.json").read_text())["rows"] == 6


def test_rows_without_answers_will_do_where_none_is_learnt_from(round_so_far) -> None:
    from cohobate.data.records import UNLABELLED, write_rows
    from tests.tasks.train.test_train import labelled

    bare = [row.model_copy(update={"answer": None, "origin": "none"}) for row in labelled()]
    write_rows(UNLABELLED, bare)
    fields = ON_POLICY | {"rows": str(UNLABELLED), "student_text": {"type": "constant", "share": 1}}
    run("here", phase(**fields), seeds=[1])
    assert json.loads((TRAIN / "here/summary.json").read_text())["rows"] == 10
    with pytest.raises(UserError, match="nothing to learn"):
        run("here", phase(**ON_POLICY | {"rows": str(UNLABELLED)}), seeds=[1])


def test_an_earlier_phase_teaches_seed_by_seed(round_so_far) -> None:
    run("first", phase(**SFT), seeds=[1, 2])
    run("again", phase(**ON_POLICY | {"targets": "models/train/first"}), seeds=[1, 2])
    assert digests(TRAIN / "again/seed-1") != digests(TRAIN / "again/seed-2")


def test_a_teacher_of_another_vocabulary_is_refused(round_so_far, make_tokenizer, make_model):
    other = make_tokenizer(vocabulary=280)
    checkpoints.save(make_model(other), other, ADAPT / "main", {})
    with pytest.raises(UserError, match="token ids, of which the teacher"):
        run("here", phase(**ON_POLICY), seeds=[1])
    assert INIT_STUDENT.exists() and not (TRAIN / "here/seed-1").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "data/capture/main"}, "needs a live teacher"),
        ({"terms": [{"type": "reverse_kl"}, {"type": "hard"}]}, "its own answers"),
        ({"student_text": {"type": "constant", "share": 2}}, "less than or equal to 1"),
        ({"sampling": {"replay": 3}}, "one update at least"),
        ({"workers": 2, "sampling": {"writer": {"type": "vllm"}}}, "writer vllm is for one"),
        ({"student_text": {"type": "constnat"}}, "did you mean 'constant'"),
    ],
)
def test_mistakes_in_params_are_explained(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, ON_POLICY | change, "train.here")
