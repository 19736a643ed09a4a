"""Which training checkpoint a run goes on from."""

from pathlib import Path
from typing import Any

import pytest

from cohobate.progress import Say, reporting_to
from cohobate.training import checkpointing
from cohobate.training.checkpointing import CheckpointDir, content_hash

FILES = ["manifest.json", "state.json", "weights.safetensors"]


def fill(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(range(200)))
    (folder / "state.json").write_text('{"history": []}')


@pytest.fixture
def directory(project: Path) -> CheckpointDir:
    checkpoint_dir = CheckpointDir(Path("kept"), every=10)
    for update in (10, 20, 30):
        checkpoint_dir.save(update, fill)
    return checkpoint_dir


def newest(directory: CheckpointDir) -> tuple[str, list[str]]:
    messages: list[Any] = []
    with reporting_to(messages.append):
        folder = directory.latest()
    return folder.name if folder else "", [e.text for e in messages if isinstance(e, Say)]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_the_newest_two_are_kept(directory: CheckpointDir) -> None:
    assert sorted(path.name for path in directory.folder.iterdir()) == [
        "update-000020",
        "update-000030",
    ]
    assert newest(directory) == ("update-000030", [])


@pytest.mark.parametrize("how", ["missing", "truncated", "bit-flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_named_and_removed(directory: CheckpointDir, name: str, how: str) -> None:
    damage(directory.folder / "update-000030" / name, how)
    newest_name, messages = newest(directory)
    assert newest_name == "update-000020"
    assert len(messages) == 1 and name in messages[0] and "update-000030" in messages[0]
    assert newest(directory) == ("update-000020", [])


def test_what_a_killed_process_was_writing_is_cleared(directory: CheckpointDir) -> None:
    partial = directory.folder / ".update-000040.partial"
    partial.mkdir()
    fill(partial)
    assert newest(directory) == ("update-000030", [])
    assert not partial.exists()


def test_a_checkpoint_is_due_at_each_interval_and_at_the_end() -> None:
    directory = CheckpointDir(Path("kept"), every=10)
    assert [n for n in range(1, 26) if directory.is_due(n, updates=25)] == [10, 20, 25]


def test_each_fit_of_a_run_has_a_folder_of_its_own(project: Path) -> None:
    folders = []
    for decided_by in ([1], [1], [2]):
        with checkpointing.resumable("kd/seed-1", *decided_by):
            run = checkpointing.current_run()
            assert run is not None
            folders.append([run.checkpoint_dir(10, "abcdefgh").folder for _ in range(2)])
    assert checkpointing.current_run() is None
    assert folders[0] == folders[1]
    assert len({*folders[0], *folders[2]}) == 4


def test_content_is_of_a_file_a_published_folder_or_any_folder(project: Path) -> None:
    directory = CheckpointDir(Path("kept"), every=1)
    directory.save(1, fill)
    published, loose = directory.folder / "update-000001", Path("loose")
    loose.mkdir()
    fill(loose)
    before = [content_hash(path) for path in (published, loose, loose / "state.json")]
    (loose / "state.json").write_text("{}")
    after = [content_hash(path) for path in (published, loose, loose / "state.json")]
    assert before[0] == after[0] == content_hash(published / "manifest.json")
    assert before[1] != after[1] and before[2] != after[2]
