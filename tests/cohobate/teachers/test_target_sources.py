"""Targets of one or several teachers, live and stored, against whole logits of every model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cohobate.data.examples import Example, common_prefix
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.losses.divergences import DistiLLM2, ForwardKL, Hard, ReverseKL, Term
from cohobate.models.lm_head import Head
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.students.vocabulary_trimming import trim
from cohobate.teachers.ensembles import Best, MeanLogits, Mixture, Progressive, Route
from cohobate.teachers.signal_store.forms import StoredTopK
from cohobate.teachers.signal_store.shards import ShardWriter, publish
from cohobate.teachers.signal_store.store import Origin, SignalStore
from cohobate.teachers.target_sources import (
    LiveSource,
    StoredSource,
    check_ids,
    map_vocabulary,
    shared_vocabulary,
)
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    rows = []
    for n, length in enumerate((9, 5, 12, 7, 4, 6)):
        ids = rng.integers(5, 60, length).astype(np.int32)
        kind = ("animal", "plant")[n % 2]
        rows.append(Example.with_answer(f"row-{n}", ids, 2, group=kind, by_student=n in (1, 2)))
    return rows


def logits_of(model: Any, row: Example) -> Tensor:
    """Return the logits at the row's completion, one row at a time and without padding."""
    ids = torch.from_numpy(row.ids[None].astype(np.int64))
    logits: Tensor = model(ids).logits[0, row.prompt_length - 1 : -1]
    return logits.double()


def loss_of(
    model: Any,
    terms: list[Term],
    target_source: Any,
    progress: float = 1.0,
    rows: list[Example] | None = None,
) -> Tensor:
    rows = rows or examples()
    batch = MicroBatches(rows, [range(len(rows))], len(rows), target_source)[0] | {
        "progress": progress
    }
    loss_fn = CausalLMLoss(model, terms, 5, target_source)
    loss, losses = loss_fn(**batch, divisor=len(batch["labels_N"]))
    torch.testing.assert_close(losses.sum() / len(losses), loss.detach())
    return loss


def mean_over_tokens(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).mean()


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


@pytest.fixture
def models(make_model, tokenizer):
    """A student, and two teachers of other depths and widths."""
    return [
        make_model(tokenizer, seed=1, layers=2),
        make_model(tokenizer, seed=2, layers=4, hidden_size=48, tie_word_embeddings=False),
        make_model(tokenizer, seed=3, layers=3),
    ]


def live(models: list[Any], tokenizer: Any, **options: Any) -> LiveSource:
    named = dict(zip(("one", "two"), models[1:], strict=False))
    return LiveSource(named, len(tokenizer), **options)


def test_one_live_teacher_is_the_plain_computation(models, tokenizer) -> None:
    student, teacher, _ = models
    target_source = live(models[:2], tokenizer)
    loss = loss_of(student, [ForwardKL(weight=0.7, temperature=2), Hard(weight=0.3)], target_source)
    expected = []
    for row in examples():
        z, t = logits_of(student, row), logits_of(teacher, row)
        labels = torch.from_numpy(row.ids[2:].astype(np.int64))
        soft = 4 * forward_kl((t / 2).softmax(-1), (z / 2).softmax(-1))
        hard = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        expected.append(0.7 * soft + 0.3 * hard)
    reference = mean_over_tokens(expected)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=0)
    grads = torch.autograd.grad(reference, list(student.parameters()))
    for actual, grad in zip(torch.autograd.grad(loss, student.parameters()), grads, strict=True):
        assert (actual - grad).norm() <= 1e-5 * grad.norm() + 1e-7
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())


ROUTE = Route(type="route", groups={"plant": "one", "*": "two"})
COMBINED = {
    "mixture": (Mixture(), lambda t, row: 0.7 * t[0].softmax(-1) + 0.3 * t[1].softmax(-1)),
    "mean_logits": (
        MeanLogits(type="mean_logits"),
        lambda t, row: (0.7 * t[0] + 0.3 * t[1]).softmax(-1),
    ),
    "route": (
        ROUTE,
        lambda t, row: t[0 if row.group == "plant" else 1].softmax(-1),
    ),
    "best": (Best(type="best"), lambda t, row: min(t, key=lambda x: cost(x, row)).softmax(-1)),
}


def cost(logits: Tensor, row: Example) -> float:
    labels = torch.from_numpy(row.ids[2:].astype(np.int64))
    return float(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", COMBINED)
def test_several_live_teachers(models, tokenizer, name) -> None:
    ensemble, target = COMBINED[name]
    target_source = live(models, tokenizer, ensemble=ensemble, weights=(1.4, 0.6))
    loss = loss_of(models[0], [ReverseKL()], target_source)
    expected = []
    with torch.no_grad():
        for row in examples():
            z, *t = (logits_of(model, row) for model in models)
            expected.append(forward_kl(z.softmax(-1), target(t, row)))
    assert float(loss) == pytest.approx(float(mean_over_tokens(expected)), rel=1e-5)


def store(folder: Any, teacher: Any, tokenizer: Any, k: int) -> SignalStore:
    size = len(tokenizer)
    form, head = StoredTopK(type="top_k", k=k), Head(torch.eye(size))
    origin = Origin(
        teacher="feed",
        tokenizer=vocabulary_hash(tokenizer),
        template=template_hash(tokenizer),
        vocabulary=size,
        width=size,
        form=form,
        number_format="float32",
    )
    shard = folder.with_name(f"{folder.name}-shard")
    with torch.no_grad(), ShardWriter(shard, 0, origin) as writer:
        for row in examples():
            logits = logits_of(teacher, row).float()
            writer.add([row], form.measure(head, logits, torch.empty(len(logits), 0)))
    publish([shard], folder, origin, tokenizer, head)
    return SignalStore(folder)


@pytest.mark.parametrize("name", ["mixture", "route", "best"])
def test_several_stored_teachers_are_the_live_ones(models, tokenizer, tmp_path, name) -> None:
    ensemble, _ = COMBINED[name]
    with torch.no_grad():
        stores = {
            key: store(tmp_path / key, model, tokenizer, len(tokenizer) - 1)
            for key, model in zip(("one", "two"), models[1:], strict=True)
        }
    stored = StoredSource(stores, ensemble=ensemble, weights=(0.7, 0.3))
    stored.attach(examples(), tokenizer)
    alive = live(models, tokenizer, ensemble=ensemble, weights=(0.7, 0.3))
    grads = [
        torch.autograd.grad(loss_of(models[0], [ForwardKL()], source), models[0].parameters())
        for source in (stored, alive)
    ]
    for actual, expected in zip(*grads, strict=True):
        assert (
            actual - expected
        ).norm() <= 0.01 * expected.norm() + 1e-6  # stored in half precision


def test_a_group_without_a_teacher_is_refused_with_its_row(models, tokenizer) -> None:
    ensemble = Route(type="route", groups={"plant": "one"})
    with pytest.raises(UserError, match="group 'animal'") as caught:
        loss_of(
            models[0], [ForwardKL()], live(models, tokenizer, ensemble=ensemble, weights=(1, 1))
        )
    assert caught.value.where == "row row-0"


def test_progressive_targets_start_at_the_student_and_end_at_the_teacher(models, tokenizer) -> None:
    student, teacher, _ = models
    moving = live(models[:2], tokenizer, progressive=Progressive(start=0.25, until=0.5))
    expected = []
    with torch.no_grad():
        for row in examples():
            q, p = (logits_of(model, row).softmax(-1) for model in (student, teacher))
            expected.append(forward_kl(0.25 * p + 0.75 * q, q))
    actual = loss_of(student, [ForwardKL()], moving, progress=0.0)
    assert float(actual) == pytest.approx(float(mean_over_tokens(expected)), rel=1e-4)
    still = live(models[:2], tokenizer)
    for progress in (0.5, 1.0):
        now, always = (loss_of(student, [ForwardKL()], t, progress) for t in (moving, still))
        assert float(now) == float(always)


def test_the_progressive_schedule_reaches_exactly_one() -> None:
    for until in (0.1, 0.3, 0.7, 1.0):
        shares = [Progressive(start=0.1, until=until).teacher_share(n / 49) for n in range(50)]
        assert shares[0] == 0.1 and shares[-1] == 1.0 and shares == sorted(shares)


def test_distillm2_gives_each_row_its_alpha(models, tokenizer) -> None:
    student, teacher, _ = models
    loss = loss_of(student, [DistiLLM2()], live(models[:2], tokenizer))
    rows, gaps = examples(), []
    with torch.no_grad():
        for row in rows:
            labels = torch.from_numpy(row.ids[2:].astype(np.int64))[:, None]
            q, p = (logits_of(model, row).softmax(-1) for model in (student, teacher))
            chance = [float(x.gather(-1, labels).log().mean().exp()) for x in (p, q)]
            gaps.append((p, q, (chance[0] - chance[1]) * (-1 if row.by_student else 1)))
    total, tokens = 0.0, 0
    for row, (p, q, gap) in zip(rows, gaps, strict=True):
        kin = [g for r, (_, _, g) in zip(rows, gaps, strict=True) if r.by_student == row.by_student]
        alpha = min(0.1, max(0.01, 1 - 0.9 * np.mean(kin) / (gap + 1e-5)))
        skewed = (
            forward_kl(q, (1 - alpha) * p + alpha * q)
            if row.by_student
            else forward_kl(p, alpha * p + (1 - alpha) * q)
        )
        total, tokens = total + float(skewed.sum()), tokens + len(skewed)
    assert float(loss) == pytest.approx(total / tokens, rel=1e-5)


def test_padded_vocabularies_are_compared_on_the_shared_ids(make_model, tokenizer) -> None:
    size = len(tokenizer)
    student = make_model(tokenizer, seed=1, layers=2)
    teacher = make_model(tokenizer, seed=2, vocab_size=size + 12)
    loss = loss_of(student, [ForwardKL()], LiveSource({"one": teacher}, size))
    expected = []
    with torch.no_grad():
        for row in examples():
            q, p = (logits_of(m, row)[:, :size].softmax(-1) for m in (student, teacher))
            expected.append(forward_kl(p, q))
    assert float(loss) == pytest.approx(float(mean_over_tokens(expected)), rel=1e-5)


def test_a_trimmed_student_is_taught_by_what_the_teacher_says_of_its_tokens(
    make_model, tokenizer
) -> None:
    """The teacher reads its own ids of the same tokens; its distribution is over the student's."""
    whole = make_model(tokenizer, seed=2)
    student = make_model(tokenizer, seed=1, layers=2)
    words = [Row(id="1", prompt="Definition: a small thing\nCategory:", answer=" animal")]
    trimmed = trim(student, tokenizer, words)
    assert len(trimmed) < len(tokenizer)
    count, ids_V = map_vocabulary(trimmed, tokenizer, "here")
    assert count == len(trimmed) and ids_V is not None
    live = LiveSource({"one": whole}, count, teacher_ids={"one": ids_V})
    loss = loss_of(student, [ForwardKL()], live)
    expected = []
    with torch.no_grad():
        for row in examples():
            read = replace(row, ids=ids_V.numpy()[row.ids])
            p = logits_of(whole, read)[:, ids_V].softmax(-1)
            expected.append(forward_kl(p, logits_of(student, row).softmax(-1)))
    assert float(loss) == pytest.approx(float(mean_over_tokens(expected)), rel=1e-5)
    assert map_vocabulary(tokenizer, tokenizer, "here") == (len(tokenizer), None)


@pytest.mark.parametrize("ensemble", [None, Mixture(), ROUTE])
@pytest.mark.parametrize("renumbered", [False, True])
def test_a_teacher_reads_what_all_prompts_begin_with_once(
    models, tokenizer, ensemble, renumbered, monkeypatch
) -> None:
    rows = [
        replace(row, ids=np.concatenate([[7, 8, 9, 10], row.ids]), spans=((6, 4 + len(row.ids)),))
        for row in examples()
    ]
    prefix_P = common_prefix(rows)
    assert prefix_P.tolist() == [7, 8, 9, 10]
    chosen = models if ensemble else models[:2]
    options: dict[str, Any] = {"ensemble": ensemble, "weights": (0.5, 0.5)} if ensemble else {}
    if renumbered:
        options["teacher_ids"] = {"one": torch.arange(len(tokenizer)).flip(0)}
    plain = loss_of(models[0], [ForwardKL()], live(chosen, tokenizer, **options), rows=rows)
    target_source = live(chosen, tokenizer, prefix_P=prefix_P, **options)
    read: list[int] = []
    models[1].get_decoder().register_forward_pre_hook(lambda _, ids: read.append(ids[0].numel()))
    monkeypatch.setattr("cohobate.fast.padding_free._worth", lambda device, room: 1)
    for _ in range(2):
        actual = loss_of(models[0], [ForwardKL()], target_source, rows=rows)
        torch.testing.assert_close(actual, plain, rtol=1e-5, atol=0)
    assert read.count(len(prefix_P)) == 1
    taught = [row for row in rows if ensemble is not ROUTE or row.group == "plant"]
    assert read[-1] == sum(len(row.ids) - 1 - len(prefix_P) for row in taught)


def test_an_id_that_is_another_string_is_refused(make_tokenizer) -> None:
    one = make_tokenizer()
    assert shared_vocabulary(one, make_tokenizer(), "here") == len(one)
    longer = make_tokenizer()
    longer.add_tokens(["zzz"])
    assert shared_vocabulary(one, longer, "here") == len(one)
    other = make_tokenizer(
        special=["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    )
    with pytest.raises(UserError, match="id 0 is '<|pad|>' to the student".replace("|", r"\|")):
        shared_vocabulary(one, other, "here")


def test_a_row_with_a_token_that_not_both_have_is_refused() -> None:
    with pytest.raises(UserError, match="not among the 40 ids"):
        check_ids(examples(), 40)


def test_a_bfloat16_teacher_stays_near_its_float32_self(models, tokenizer) -> None:
    student, teacher, _ = models
    whole = loss_of(student, [ForwardKL()], live(models[:2], tokenizer))
    with torch.autocast("cpu", torch.bfloat16):
        half = loss_of(
            student, [ForwardKL()], LiveSource({"one": teacher.bfloat16()}, len(tokenizer))
        )
    assert float(half) == pytest.approx(float(whole), rel=0.05)


def test_a_teacher_with_more_than_a_head_is_refused(models, tokenizer) -> None:
    models[1].lm_head.register_forward_hook(lambda module, inputs, logits: logits**2)
    with pytest.raises(UserError, match="does more"):
        live(models[:2], tokenizer)


def test_micro_batches_add_up_to_the_whole_batch(models, tokenizer) -> None:
    student, target_source = models[0], live(models[:2], tokenizer)
    whole = torch.autograd.grad(
        loss_of(student, [ReverseKL()], target_source), student.parameters()
    )
    rows, loss_fn = examples(), CausalLMLoss(student, [ReverseKL()], 5, target_source)
    parts = MicroBatches(rows, [range(6)], 4, target_source)
    total = sum(loss_fn(**parts[n], divisor=sum(r.length for r in rows))[0] for n in range(2))
    for a, b in zip(torch.autograd.grad(total, student.parameters()), whole, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7


@pytest.mark.parametrize("name", COMBINED)
def test_a_batch_without_any_valid_token_has_no_loss(models, tokenizer, name) -> None:
    ensemble, _ = COMBINED[name]
    target_source = live(models, tokenizer, ensemble=ensemble, weights=(0.7, 0.3))
    masked = [Example.with_answer("none", np.arange(5, 12, dtype=np.int32), 7, group="plant")]
    batch = MicroBatches(masked, [[0]], 1, target_source)[0]
    loss, losses = CausalLMLoss(models[0], [ReverseKL()], 5, target_source)(**batch, divisor=1)
    grads = torch.autograd.grad(loss, models[0].parameters(), allow_unused=True)
    assert float(loss) == 0 and losses.shape == (0, 1)
    assert all(grad is None or not grad.any() for grad in grads)


def test_a_head_is_measured_in_its_own_precision_under_autocast(models, tokenizer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(models[0], [ForwardKL()], live(models[:2], tokenizer))
    assert loss.isfinite()
