"""The ledger: nothing accepted is lost, nothing half-written counts."""

import errno
import multiprocessing
import os
import time

import pytest

from cohobate.backends import ledger as ledgers
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.requests import answer_key
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.errors import UserError
from cohobate.generation.requests import Answer
from cohobate.models.number_formats import FORCED


def Ledger(teacher, folder):  # noqa: N802
    return ledgers.Ledger(storage_for(teacher, str(folder)))


def batch(*keys):
    return {key: Answer(f"answer to {key} \u2028\n", "stop", -0.5) for key in keys}


@pytest.fixture
def three(tmp_path):
    """A ledger of three batches; the file's bytes after each."""
    sizes = []
    with Ledger("teacher", tmp_path) as ledger:
        for keys in (("a", "b"), ("c",), ("d", "e", "f")):
            ledger.append(batch(*keys))
            sizes.append(ledger.storage.path.stat().st_size)
    return ledger.storage.path, sizes


def opened(folder):
    with Ledger("teacher", folder) as ledger:
        return {key for key in "abcdefg" if key in ledger}


def test_what_was_appended_is_there_again(three, tmp_path):
    with Ledger("teacher", tmp_path) as ledger:
        assert ledger["d"] == Answer("answer to d \u2028\n", "stop", -0.5)
        assert "g" not in ledger
    with Ledger("another teacher", tmp_path) as ledger:
        assert "a" not in ledger


def test_a_key_says_everything_that_decides_an_answer():
    keys = [
        answer_key(["transformers", "bfloat16"], {"seed": 0}, "a", 0),
        answer_key(["transformers", "bfloat16"], {"seed": 1}, "a", 0),
        answer_key(["transformers", "float32"], {"seed": 0}, "a", 0),
        answer_key(
            ["transformers", "bfloat16"], {"seed": 0}, [{"role": "user", "content": "a"}], 0
        ),
        answer_key(["transformers", "bfloat16"], {"seed": 0}, "a", 1),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
def test_a_key_holds_the_number_format_that_auto_comes_to(monkeypatch, forced):
    monkeypatch.setenv(FORCED, forced)
    assert Transformers().key_parts() == ["transformers", forced]
    assert Vllm(type="vllm").key_parts() == ["vllm", forced]
    assert Transformers(precision="float32").key_parts() == ["transformers", "float32"]


def test_a_write_cut_off_anywhere_loses_its_batch_alone(three, tmp_path):
    path, (_, second, third) = three
    content = path.read_bytes()
    for cut in range(second + 1, third):
        path.write_bytes(content[:cut])
        assert opened(tmp_path) == {"a", "b", "c"}, cut
        assert path.stat().st_size == second  # repaired: the next batch starts on a line of its own
    with Ledger("teacher", tmp_path) as ledger:
        ledger.append(batch("d", "e", "f"))
    assert path.read_bytes() == content


def test_a_flipped_bit_costs_its_line_alone(three, tmp_path):
    path, _ = three
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for at in range(0, len(lines[0]) - 1, 7):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert opened(tmp_path) == set("bcdef"), at


def test_a_full_disk_leaves_what_was_there(three, tmp_path, monkeypatch):
    path, (*_, whole) = three
    real = os.write

    def full(descriptor, data):
        real(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Ledger("teacher", tmp_path) as ledger:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match="disk is full"):
            ledger.append(batch("g"))
        monkeypatch.undo()
        assert "g" not in ledger and path.stat().st_size == whole
        ledger.append(batch("g"))
    assert opened(tmp_path) == set("abcdefg")


def _append_slowly(folder, started):
    with Ledger("teacher", folder) as ledger:
        started.set()
        time.sleep(0.3)
        ledger.append(batch("g"))


def test_a_second_process_waits_and_finds_what_the_first_wrote(three, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    other = spawn.Process(target=_append_slowly, args=(tmp_path, started))
    other.start()
    assert started.wait(30)
    assert opened(tmp_path) == set("abcdefg")
    other.join(10)
    assert other.exitcode == 0
