"""Where ledgers lie: shared by the worktrees of a repository, or on S3."""

import subprocess

import pytest
from botocore.exceptions import EndpointConnectionError

from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import (
    LEDGER,
    LEDGER_VARIABLE,
    S3Storage,
    signal_storage_for,
    storage_for,
)
from cohobate.backends.requests import NoAnswer
from cohobate.backends.signal_log import PackedAnswers, SignalLog
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Usage
from cohobate.teachers.signal_store.store import Origin
from cohobate.teachers.signal_store.top_k_form import StoredTopK

TEACHER = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.delenv(LEDGER_VARIABLE, raising=False)


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def test_worktrees_share_the_ledger_of_the_main_one(project, monkeypatch, tmp_path):
    (project / "sub").mkdir()
    (project / "sub" / "file").touch()
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    git(project, "worktree", "add", "-q", str(tmp_path / "round"))
    for folder in (project, tmp_path / "round"):
        monkeypatch.chdir(folder)
        assert storage_for(TEACHER).path == project / LEDGER / f"{TEACHER[:16]}.jsonl"
        monkeypatch.chdir(folder / "sub")
        assert storage_for(TEACHER).path.parent == project / "sub" / LEDGER


def test_an_experiment_of_dvc_shares_the_ledger_of_its_project(project, monkeypatch):
    """`dvc exp run --temp` and `--queue`: repositories of their own below .dvc/tmp/exps."""
    git(project, "init", "-q")
    for below in ("", "ml/distil"):  # the DVC project is the repository, or a folder in it
        for kind in ("tmp123", "standalone/tmp123"):
            folder = project / below / ".dvc/tmp/exps" / kind
            (folder / below).mkdir(parents=True)
            git(folder, "init", "-q")
            monkeypatch.chdir(folder / below)
            assert storage_for(TEACHER).path.parent == project / below / LEDGER
            assert storage_for(TEACHER, "ours").path.parent == project / below / "ours"


def test_a_submodule_keeps_its_own_ledger(project, monkeypatch):
    inner = project / "distil"
    inner.mkdir()
    (inner / ".git").write_text("gitdir: ../.git/modules/distil\n")
    monkeypatch.chdir(inner)
    assert storage_for(TEACHER).path.parent == inner / LEDGER


def test_a_chosen_place_counts_and_the_environment_more(project, monkeypatch, tmp_path):
    assert storage_for(TEACHER).path.parent == LEDGER  # git knows nothing of this folder
    assert storage_for(TEACHER, "elsewhere").path.parent.name == "elsewhere"
    monkeypatch.setenv(LEDGER_VARIABLE, "s3://bucket/ours/")
    assert str(storage_for(TEACHER, "elsewhere")) == f"s3://bucket/ours/{TEACHER[:16]}"


class Store:
    """An object store in memory, as far as s3fs is used."""

    objects: dict[str, bytes]

    def __init__(self):
        self.objects, self.down = {}, False

    def invalidate_cache(self):
        pass

    def find(self, prefix, detail=False):
        if self.down:
            raise PermissionError("Access Denied")
        paths = [path for path in self.objects if path.startswith(prefix)]
        times = dict(zip(self.objects, range(len(self.objects)), strict=True))
        about = {p: {"size": len(self.objects[p]), "LastModified": times[p]} for p in paths}
        return about if detail else paths

    def cat_ranges(self, paths, starts, ends, on_error):
        assert on_error == "raise"
        ranges = zip(paths, starts, ends, strict=True)
        return [self.objects[path][start:end] for path, start, end in ranges]

    def cat_file(self, path):
        return self.objects[path]

    def pipe_file(self, path, data):
        if self.down:
            raise PermissionError("Access Denied")
        assert path not in self.objects or self.objects[path] == data
        self.objects[path] = data


@pytest.fixture
def store(monkeypatch):
    store = Store()
    monkeypatch.setattr(S3Storage, "_store", store)
    return store


def on_s3():
    return Ledger(storage_for(TEACHER, "s3://bucket/ours"))


def test_writers_on_s3_need_no_lock(store):
    with on_s3() as one, on_s3() as other:
        one.append({"a": Answer("x", "stop", None), "b": Answer("y", "stop", None)})
        other.append({"a": Answer("z", "stop", None), "c": Answer("w", "stop", None)})
    assert len(store.objects) == 2
    with on_s3() as first, on_s3() as second:
        assert all(key in first for key in "abc")
        assert first["a"] == second["a"] and first["a"].text in "xz"


def test_a_damaged_object_costs_its_lines_alone(store):
    with on_s3() as ledger:
        ledger.append({"a": Answer("x", "stop", None)})
        ledger.append({"b": Answer("y", "stop", None)})
    path = next(p for p, data in store.objects.items() if b'"a"' in data)
    store.objects[path] = store.objects[path][:-5]
    with on_s3() as ledger:
        assert "a" not in ledger and "b" in ledger


def test_a_store_that_is_down_is_named(store):
    with on_s3() as ledger:
        store.down = True
        with pytest.raises(UserError, match="cannot write to the ledger: Access"):
            ledger.append({"a": Answer("x", "stop", None)})
        assert "a" not in ledger
    store.find = unreachable
    with pytest.raises(UserError, match="cannot read the ledger: Could not connect"), on_s3():
        pass


def unreachable(prefix):
    raise EndpointConnectionError(endpoint_url=f"https://s3.example.com/{prefix}")


def test_what_was_spent_is_summed_failures_included(project):
    with Ledger(storage_for(TEACHER)) as ledger:
        tokens = (("the", -0.5, {"the": -0.5, "a": -1.5}),)
        answer = Answer("x", "stop", -0.5, Usage(10, 5, 0.25), tokens)
        ledger.append({"a": answer, "b": NoAnswer("empty", 0.5), "c": NoAnswer("down")})
        assert ledger.spent == 0.75
    with Ledger(storage_for(TEACHER)) as ledger:
        assert ledger.spent == 0.75 and ledger["a"] == answer
        assert "b" not in ledger and "c" not in ledger


@pytest.mark.parametrize("where", ["s3://bucket/ours", ""])
def test_signals_lie_beside_the_ledger(store, project, where):
    """Those of the first batch with some ids count, however often they are read."""
    form = StoredTopK(type="top_k", k=2)
    origin = Origin(
        teacher="t", tokenizer="t", template="t", vocabulary=9, width=1, form=form,
        number_format="float32",
    )  # fmt: skip
    size = origin.record.itemsize
    batches = [
        PackedAnswers.of(origin.model_dump_json(), digests, records, size)
        for digests, records in (
            ([b"a" * 16, b"b" * 16], [b"1" * size, b"2" * 3 * size]),
            ([b"b" * 16, b"c" * 16], [b"3" * 3 * size, b"4" * size]),
        )
    ]

    def opened():
        return SignalLog(signal_storage_for(TEACHER, where), form, "float32")

    def content(log):
        at = log.find([bytes([letter]) * 16 for letter in b"abcd"])
        assert (at < 0).tolist() == [False, False, False, True]
        return [packed.tokens.tobytes() for packed in log.read(at[:3].tolist())]

    expected = [b"1" * size, b"2" * 3 * size, b"4" * size]
    with opened() as log:
        assert log.origin is None and (log.find([b"a" * 16]) < 0).all()
        for batch in batches:
            log.append(batch)
        assert content(log) == expected
    with opened() as log:
        assert content(log) == expected
        assert log.origin == origin
    with SignalLog(signal_storage_for(TEACHER, where), form, "bfloat16") as log:
        assert log.origin is None
    assert (len(store.objects) == 2) == bool(where)
    assert (LEDGER / "signals").exists() != bool(where)
