"""The signal store: what is written is what is read, and a mismatch is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import checkpoints
from tasks.batches import Batches, Example
from tasks.errors import UserError
from tasks.signals import Origin, Shard, SignalStore, SignalWriter, vocabulary_hash
from tasks.teaching import Stored

K, TEMPERATURES = 3, (1.0, 2.0)


def examples() -> list[Example]:
    ids = [[5, 6, 7, 8], [9, 5], [6, 7, 8, 9, 5, 6]]
    prompts = [2, 1, 1]
    return [
        Example(f"{n}/main/0", np.array(i, dtype=np.int32), p)
        for n, (i, p) in enumerate(zip(ids, prompts, strict=True))
    ]


def shard(tokens: int, seed: int = 0) -> Shard:
    dice = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, 40, generator=dice)
    logp, ids = logits.log_softmax(-1).topk(K)
    others = logits.log_softmax(-1).scatter(-1, ids, -torch.inf)
    leftover = torch.stack([(others / t).logsumexp(-1) for t in TEMPERATURES], -1)
    return Shard(ids, logp, leftover)


def write(folder: Path, tokenizer, **changes) -> Shard:
    origin = Origin(
        **{
            "teacher": "feed",
            "tokenizer": vocabulary_hash(tokenizer),
            "vocabulary": 40,
            "top_k": K,
            "temperatures": TEMPERATURES,
        }
        | changes
    )
    first, second, third = examples()
    parts = shard(7, seed=1), shard(1, seed=2)
    with checkpoints.staged(folder) as partial, SignalWriter(partial, origin) as writer:
        writer.add([third, first], parts[0])
        writer.add([second], parts[1])
    return Shard(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


@pytest.mark.parametrize("vocabulary", [40, 1 << 17])
def test_what_is_written_is_what_is_read(tmp_path, tokenizer, vocabulary) -> None:
    written = write(tmp_path / "main", tokenizer, vocabulary=vocabulary)
    store = SignalStore(tmp_path / "main")
    found = store.attach(examples(), tokenizer)
    assert [row.signal for row in found] == [5, 7, 0]
    read = store.read([row.signal for row in found], [row.length for row in found])
    order = [5, 6, 7, 0, 1, 2, 3, 4]
    assert torch.equal(read.ids_NK, written.ids_NK[order])
    torch.testing.assert_close(read.logp_NK, written.logp_NK[order], rtol=5e-4, atol=0)
    torch.testing.assert_close(read.leftover_NT, written.leftover_NT[order], rtol=5e-4, atol=0)
    assert read.temperatures == TEMPERATURES


def test_quantisation_costs_next_to_nothing(tmp_path, tokenizer) -> None:
    exact = write(tmp_path / "main", tokenizer)
    read = SignalStore(tmp_path / "main").read([0], [8])
    p = torch.cat([exact.logp_NK, exact.leftover_NT[:, :1]], -1).double()
    q = read.at(1.0, "bucket").double()
    assert (p.exp() * (p - q)).sum(-1).abs().max() < 5e-4


def test_it_says_what_it_was_made_with(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    origin = SignalStore(tmp_path / "main").origin
    assert (origin.teacher, origin.rows, origin.tokens) == ("feed", 3, 8)
    size = sum(path.stat().st_size for path in (tmp_path / "main").glob("*.bin"))
    assert size == 8 * (K * 2 + K * 2 + 2 * 2)


def test_a_batch_carries_the_signals_of_its_tokens(tmp_path, tokenizer) -> None:
    written = write(tmp_path / "main", tokenizer)
    store = SignalStore(tmp_path / "main")
    stored = Stored({"main": store})
    batch = Batches(stored.attach(examples(), tokenizer), [[1, 0]], 2, stored)[0]
    assert batch["targets_N"].tolist() == [5, 7, 8]
    assert torch.equal(batch["brought"]["stored"]["main"]["ids_NK"], written.ids_NK[[7, 5, 6]])


def test_reading_takes_no_more_memory_than_the_rows_read(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    assert isinstance(SignalStore(tmp_path / "main")._ids, np.memmap)


def test_other_token_ids_are_refused_with_the_row(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = examples()
    rows[1] = replace(rows[1], ids=rows[1].ids + 1)
    with pytest.raises(UserError, match=r"token ids are others now, of row 1/main/0\n"):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_another_border_between_prompt_and_answer_is_refused(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = [replace(examples()[2], prompt_length=2)]
    with pytest.raises(UserError, match="row 2/main/0"):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_a_row_that_was_not_captured_is_refused_by_name(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    rows = [*examples(), *(replace(examples()[0], key=f"{n}/main/1") for n in range(5))]
    with pytest.raises(UserError, match="row 0/main/1, 1/main/1, 2/main/1 and 2 more"):
        SignalStore(tmp_path / "main").attach(rows, tokenizer)


def test_another_tokenizer_is_refused(tmp_path, tokenizer, make_tokenizer) -> None:
    write(tmp_path / "main", make_tokenizer(vocabulary=290))
    with pytest.raises(UserError, match="another tokenizer"):
        SignalStore(tmp_path / "main").attach(examples(), tokenizer)


def test_another_teacher_is_refused(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    store = SignalStore(tmp_path / "main")
    store.expect_teacher("feed")
    with pytest.raises(UserError, match="of teacher feed, not beef"):
        store.expect_teacher("beef")


def test_a_damaged_file_is_called_by_its_name(tmp_path, tokenizer) -> None:
    write(tmp_path / "main", tokenizer)
    path = tmp_path / "main" / "logprobs.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(UserError, match=r"logprobs\.bin"):
        SignalStore(tmp_path / "main")


def test_no_store_and_a_later_format_are_refused(tmp_path, tokenizer) -> None:
    with pytest.raises(UserError, match="no teacher signals"):
        SignalStore(tmp_path / "main")
    write(tmp_path / "main", tokenizer, format=99)
    with pytest.raises(UserError, match="format 99"):
        SignalStore(tmp_path / "main")


def test_the_same_row_twice_is_refused_and_nothing_is_published(tmp_path, tokenizer) -> None:
    origin = Origin(teacher="t", tokenizer="t", vocabulary=40, top_k=K, temperatures=TEMPERATURES)
    row = examples()[1]
    with (
        pytest.raises(UserError, match="twice"),
        checkpoints.staged(tmp_path / "main") as partial,
        SignalWriter(partial, origin) as writer,
    ):
        writer.add([row, row], shard(2))
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_is_not_finite_stops_at_the_row(tmp_path, tokenizer) -> None:
    origin = Origin(teacher="t", tokenizer="t", vocabulary=40, top_k=K, temperatures=TEMPERATURES)
    signals = shard(3)
    signals.logp_NK[2] = torch.nan
    with (
        pytest.raises(UserError, match="row 1/main/0"),
        checkpoints.staged(tmp_path / "main") as partial,
        SignalWriter(partial, origin) as writer,
    ):
        writer.add(examples()[:2], signals)
