"""The signal store: what is written is what is read, and a mismatch is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard, ReverseKL
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.losses.sampled_ids import SampledIds
from cohobate.losses.top_k import TopK
from cohobate.models.lm_head import Head
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.teachers.signal_store.form import Signals
from cohobate.teachers.signal_store.forms import StoredDraws, StoredHidden, StoredTopK
from cohobate.teachers.signal_store.shards import ShardWriter, publish
from cohobate.teachers.signal_store.store import Origin, SignalStore
from cohobate.teachers.target_sources import StoredSource
from cohobate.training.batches import MicroBatches

V, D, K, TEMPERATURES = 300, 8, 3, (1.0, 2.0)
TOP_K = StoredTopK(type="top_k", k=K, temperatures=TEMPERATURES)
DRAWS = StoredDraws(type="sampled", draws=50)
HIDDEN = StoredHidden(type="hidden")
FORMS = [TOP_K, DRAWS, HIDDEN]
ANONYMOUS = dict.fromkeys(("teacher", "tokenizer", "template"), "t") | {
    "vocabulary": V,
    "width": D,
    "number_format": "float32",
}
LENGTHS = (2, 1, 5)


def by_type(form) -> str:
    return form.type


def examples() -> list[Example]:
    ids = [[5, 6, 7, 8], [9, 5], [6, 7, 8, 9, 5, 6]]
    prompts = [2, 1, 1]
    return [
        Example.with_answer(f"{n}/main/0", np.array(i, dtype=np.int32), p)
        for n, (i, p) in enumerate(zip(ids, prompts, strict=True))
    ]


def head() -> Head:
    return Head(torch.randn(V, D, generator=torch.Generator().manual_seed(9)), scale=0.5)


def measured(form, tokens: int, seed: int, precision=torch.float32) -> Signals:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, D, generator=rng).to(precision)
    draws = torch.from_numpy(form.uniform_numbers(seed, tokens))
    return form.measure(head(), hidden, draws)


def write(folder: Path, tokenizer, form=TOP_K, **changes) -> Signals:
    """A store of two shards; what was measured, in the order of `examples`."""
    fields = {
        "teacher": "feed",
        "tokenizer": vocabulary_hash(tokenizer),
        "template": template_hash(tokenizer),
        "vocabulary": V,
        "width": D,
        "form": form,
        "number_format": "float32",
        "logit_scale": 0.5,
    }
    origin = Origin(**(fields | changes))
    first, second, third = examples()
    parts = [measured(form, 7, seed=1), measured(form, 1, seed=2)]
    shards = [folder.with_name(f"shard-{n}") for n in range(2)]
    for number, rows in enumerate([[third, first], [second]]):
        with ShardWriter(shards[number], number, origin) as writer:
            writer.add(rows, parts[number])
    publish(shards, folder, origin, tokenizer, head())
    order = [5, 6, 7, 0, 1, 2, 3, 4]
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


def read_all(store: SignalStore, tokenizer) -> Signals:
    return store.read([row.signal for row in store.attach(examples(), tokenizer)])


def by_id(signals: Signals) -> torch.Tensor:
    """Log-probabilities of the stored ids, in a row of V."""
    whole = torch.full((len(signals["ids_NK"]), V), -torch.inf)
    return whole.scatter(-1, signals["ids_NK"], signals["logp_NK"])


@pytest.mark.parametrize("vocabulary", [V, 1 << 17])
def test_the_most_likely_ids_come_back(tmp_path, tokenizer, vocabulary) -> None:
    written = write(tmp_path / "main", tokenizer, vocabulary=vocabulary)
    read = read_all(SignalStore(tmp_path / "main"), tokenizer)
    assert torch.equal(read["ids_NK"], written["ids_NK"].sort().values)
    torch.testing.assert_close(by_id(read), by_id(written), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(
        read["rest_logprob_NQ"], written["rest_logprob_NQ"], rtol=5e-4, atol=0
    )
    targets = SignalStore(tmp_path / "main").targets(read)
    assert isinstance(targets, TopK) and targets.temperatures == TEMPERATURES


def test_draws_come_back_as_shares(tmp_path, tokenizer) -> None:
    written = write(tmp_path / "main", tokenizer, DRAWS)
    store = SignalStore(tmp_path / "main")
    read = read_all(store, tokenizer)
    for ids, share, drawn in zip(read["ids_NK"], read["share_NK"], written["ids_NU"], strict=True):
        expected = torch.bincount(drawn, minlength=V) / 50
        assert torch.equal(torch.bincount(ids, share, V).float(), expected)
    torch.testing.assert_close(read["entropy_N"], written["entropy_N"], rtol=1e-3, atol=1e-3)
    assert isinstance(store.targets(read), SampledIds)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_hidden_rows_come_back_with_their_head(tmp_path, tokenizer, precision) -> None:
    form, kept = HIDDEN, Head(head().weight_VD.to(precision), scale=0.5)
    origin = Origin(
        teacher="feed", tokenizer=vocabulary_hash(tokenizer), template=template_hash(tokenizer),
        vocabulary=V, width=D, form=form, number_format="float32", logit_scale=0.5,
    )  # fmt: skip
    signals = measured(form, 8, 1, precision)
    with ShardWriter(tmp_path / "shard", 0, origin) as writer:
        writer.add(examples(), signals)
    publish([tmp_path / "shard"], tmp_path / "main", origin, tokenizer, kept)
    store = SignalStore(tmp_path / "main")
    targets = store.targets(read_all(store, tokenizer))
    assert isinstance(targets, LiveTeacher)
    assert torch.equal(targets.hidden_ND, signals["hidden_ND"].to(precision))
    assert torch.equal(targets.head.weight_VD, kept.weight_VD) and targets.head.scale == 0.5


@pytest.mark.parametrize("form", FORMS, ids=by_type)
def test_rows_are_read_in_any_order(tmp_path, tokenizer, form) -> None:
    write(tmp_path / "main", tokenizer, form)
    store = SignalStore(tmp_path / "main")
    attached = store.attach(examples(), tokenizer)
    one_by_one = [store.read([row.signal]) for row in reversed(attached)]
    together = store.read([row.signal for row in reversed(attached)])
    for name, value in together.items():
        parts = [part[name] for part in one_by_one]
        width = max(part.shape[-1] if part.ndim > 1 else 0 for part in parts)
        padded = [
            torch.nn.functional.pad(part, (0, width - part.shape[-1])) if part.ndim > 1 else part
            for part in parts
        ]
        assert torch.equal(value, torch.cat(padded))


def test_a_batch_carries_the_signals_of_its_tokens(tmp_path, tokenizer) -> None:
    written = write(tmp_path / "main", tokenizer)
    store = SignalStore(tmp_path / "main")
    stored = StoredSource({"main": store})
    batch = MicroBatches(stored.attach(examples(), tokenizer), [[1, 0]], 2, stored)[0]
    assert batch["labels_N"].tolist() == [5, 7, 8]
    expected = written["ids_NK"][[2, 0, 1]].sort().values
    assert torch.equal(batch["teacher_inputs"]["stored"]["main"]["ids_NK"], expected)


def test_it_says_what_it_was_made_with(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    origin = SignalStore(tmp_path / "main").origin
    assert (origin.teacher, origin.shards, origin.rows, origin.tokens) == ("feed", 2, 3, 8)
    size = sum(path.stat().st_size for path in (tmp_path / "main").glob("*.bin"))
    assert size == 8 * origin.record.itemsize == 8 * (4 + K + 2 + 2 + 2 * 2)


def test_reading_takes_no_more_memory_than_the_rows_read(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    store = SignalStore(tmp_path / "main")
    assert all(isinstance(shard, np.memmap) for shard in store._tokens)


def test_other_token_ids_are_refused_with_the_row(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = examples()
    rows[1] = replace(rows[1], ids=rows[1].ids + 1)
    with pytest.raises(UserError, match=r"have changed since the capture: row 1/main/0; "):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_another_border_between_prompt_and_answer_is_refused(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = [replace(examples()[2], spans=((2, len(examples()[2].ids)),))]
    with pytest.raises(UserError, match="row 2/main/0"):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_a_row_that_was_not_captured_is_refused_by_name(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = [*examples(), *(replace(examples()[0], key=f"{n}/main/1") for n in range(5))]
    with pytest.raises(UserError, match="row 0/main/1, 1/main/1, 2/main/1 and 2 more"):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_another_tokenizer_or_template_is_refused(tmp_path, tokenizer, make_tokenizer) -> None:
    store = write(tmp_path / "main", make_tokenizer(vocabulary=290)) and SignalStore(
        tmp_path / "main"
    )
    with pytest.raises(UserError, match="another tokenizer"):
        store.attach(examples(), tokenizer)
    with pytest.raises(UserError, match="another chat template"):
        store.attach(examples(), make_tokenizer(vocabulary=290, chat_template="{{ 1 }}"))


@pytest.mark.parametrize(
    ("form", "term", "message"),
    [
        (DRAWS, ReverseKL(), "reverse_kl has no unbiased estimate"),
        (DRAWS, ForwardKL(temperature=2), "drawn at temperature 1"),
        (TOP_K, ReverseKL(temperature=3), r"reverse_kl at temperature 3: .* at 1, 2 only"),
    ],
)
def test_a_loss_that_the_form_cannot_give_is_refused(
    tmp_path, tokenizer, form, term, message
) -> None:
    write(tmp_path / "main", tokenizer, form)
    store = SignalStore(tmp_path / "main")
    store.check_terms([Hard(), ForwardKL()])
    with pytest.raises(UserError, match=message):
        store.check_terms([Hard(), term])


def test_a_damaged_file_is_called_by_its_name(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    path = tmp_path / "main" / "tokens-00001.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(UserError, match=r"tokens-00001\.bin"):
        SignalStore(tmp_path / "main")


def test_no_store_and_a_later_format_are_refused(tmp_path, tokenizer) -> None:
    with pytest.raises(UserError, match="no signal store"):
        SignalStore(tmp_path / "main")
    write(tmp_path / "main", tokenizer, format=99)
    with pytest.raises(UserError, match="format 99"):
        SignalStore(tmp_path / "main")


class TestTrimmedStudent:
    """A student that has only some of the teacher's tokens, under other numbers."""

    @pytest.fixture
    def student_ids(self) -> torch.Tensor:
        """Of the ids 0 to 299 the student has the 150 even ones."""
        student_ids = torch.full((V,), -1)
        student_ids[::2] = torch.arange(150)
        return student_ids

    def test_what_its_ids_lack_goes_to_the_bucket(self, student_ids) -> None:
        whole = TOP_K.unpack(TOP_K.pack(measured(TOP_K, 40, seed=3), V), V)
        part = TOP_K.restrict(whole, student_ids, 150)
        lacks = whole["ids_NK"] % 2 == 1
        assert lacks.any() and not lacks.all()
        for signals in zip(
            *(x[n] for x in (whole, part) for n in ("ids_NK", "logp_NK")), strict=True
        ):
            ids, logp, its_ids, its_logp = signals
            assert len(its_ids.unique()) == K
            kept = ids % 2 == 0
            assert torch.equal(its_ids[kept], ids[kept] // 2)
            assert torch.equal(its_logp[kept], logp[kept])
        for number, t in enumerate(TEMPERATURES):
            lost = ((whole["logp_NK"] / t).exp() * lacks).sum(-1)
            expected = (whole["rest_logprob_NQ"][:, number].exp() + lost).log()
            torch.testing.assert_close(part["rest_logprob_NQ"][:, number], expected)
        share = part["rest_logprob_NQ"][:, :1].exp() / 150
        assert (part["logp_NK"].exp()[lacks] <= share.expand_as(lacks)[lacks] * 1.001).all()

    def test_draws_of_what_it_lacks_are_left_out(self, student_ids) -> None:
        whole = DRAWS.unpack(DRAWS.pack(measured(DRAWS, 20, seed=3), V), V)
        part = DRAWS.restrict(whole, student_ids, 150)
        odd = whole["ids_NK"] % 2 == 1
        assert torch.equal(part["share_NK"], whole["share_NK"].masked_fill(odd, 0))
        counted = part["share_NK"] > 0
        assert torch.equal(2 * part["ids_NK"][counted], whole["ids_NK"][counted])

    def test_too_few_ids_for_so_many_signals_is_refused(self, student_ids) -> None:
        wide = StoredTopK(type="top_k", k=80)
        whole = wide.unpack(wide.pack(measured(wide, 4, seed=3), V), V)
        with pytest.raises(UserError, match="a student of 160 ids, this one has 150"):
            wide.restrict(whole, student_ids, 150)


def test_the_same_row_twice_is_refused_and_nothing_is_published(tmp_path, tokenizer) -> None:
    origin = Origin(**ANONYMOUS, form=TOP_K)
    row = examples()[1]
    with ShardWriter(tmp_path / "shard", 0, origin) as writer:
        writer.add([row, row], measured(TOP_K, 2, 1))
    with pytest.raises(UserError, match="twice"):
        publish([tmp_path / "shard"], tmp_path / "main", origin, tokenizer, head())
    assert not (tmp_path / "main").exists()


@pytest.mark.parametrize("form", FORMS, ids=by_type)
def test_a_teacher_that_is_not_finite_stops_at_the_row(tmp_path, form) -> None:
    origin = Origin(**ANONYMOUS, form=form)
    hidden = torch.randn(3, D)
    hidden[2] = torch.nan
    signals = form.measure(head(), hidden, torch.from_numpy(form.uniform_numbers(0, 3)))
    with (
        pytest.raises(UserError, match="row 1/main/0"),
        ShardWriter(tmp_path / "shard", 0, origin) as writer,
    ):
        writer.add(examples()[:2], signals)
    assert list(tmp_path.iterdir()) == []
