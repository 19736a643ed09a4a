"""Names on the hub, as prompt source and as teacher, against a hub on loopback."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cohobate.data.images import stored_image
from tests.loopback_hub import COMMIT, LoopbackHub, serving
from tests.tiny_pictures import picture

ROWS = 30
CONFIGURATIONS = """---
configs:
- config_name: easy
  data_files: easy.jsonl
- config_name: hard
  data_files: hard.jsonl
---
"""


def folder_of_pictures(folder: Path) -> Path:
    """Write pictures as files, with their names and answers beside them."""
    for number in range(2):
        picture(folder / f"{number}.png", "plant", number)
    lines = [{"file_name": f"{number}.png", "answer": "plant"} for number in range(2)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows_with_pictures(folder: Path) -> Path:
    """Write a Parquet file with the bytes of pictures."""
    from datasets import Dataset, Features, Image, Value

    paths = [str(picture(folder.parent / f"{number}.png", "plant", number)) for number in range(2)]
    rows = {"image": paths, "answer": ["plant"] * 2}
    features = Features({"image": Image(), "answer": Value("string")})
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture
def hub(tmp_path, checkpoint):
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "README.md").write_text("# Questions\n")
    for part, first in (("train", 0), ("test", 1000)):
        rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(first, first + ROWS)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (questions / f"{part}.jsonl").write_text(lines)
    levels = tmp_path / "levels"
    levels.mkdir()
    (levels / "README.md").write_text(CONFIGURATIONS)
    for name in ("easy", "hard"):
        (levels / f"{name}.jsonl").write_text(json.dumps({"question": name}) + "\n")
    datasets = {
        "datasets/org/questions": questions,
        "datasets/org/levels": levels,
        "datasets/org/files": folder_of_pictures(tmp_path / "files"),
        "datasets/org/rows": rows_with_pictures(tmp_path / "rows"),
    }
    with serving(datasets | {"models/org/tiny": checkpoint}) as server:
        yield server


def online(hub: LoopbackHub, home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where that is the hub: its address is read when its library is imported."""
    seen = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | seen | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


READ = """
from tasks.collect.hugging_face import HubDataset
source = HubDataset(type="hub", name="org/{name}", revision="{commit}", part="test")
rows = list(source.source_records())
print(len(rows), rows[0].number, rows[0].columns, source.release())
"""


def test_a_data_set_on_the_hub_is_read_at_its_commit(hub, tmp_path):
    done = online(hub, tmp_path / "home", READ.format(name="questions", commit=COMMIT))
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    assert done.stdout.strip() == (
        f"{ROWS} 1 {{'question': '1000 + 1?', 'answer': '1001'}} org/questions@{COMMIT[:12]}"
    )
    assert not any("/main/" in request for request in hub.requests)


READ_SEVERAL = """
from collections import Counter
from tasks.collect.hugging_face import HubDataset
parts = {{"train": "train", "test": "test"}}
source = HubDataset(type="hub", name="org/questions", revision="{commit}", part=parts)
print(Counter((row.part, row.file) for row in source.source_records()))
source = HubDataset(type="hub", name="org/levels", revision="{commit}", config=("easy", "hard"))
print([(row.columns, row.number, row.file) for row in source.source_records()])
"""


def test_several_splits_and_configurations(hub, tmp_path):
    done = online(hub, tmp_path / "home", READ_SEVERAL.format(commit=COMMIT))
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    splits, configurations = done.stdout.splitlines()
    assert splits == str(
        Counter({(part, f"org/questions, {part}"): ROWS for part in ("train", "test")})
    )
    assert configurations == str(
        [({"config": n, "question": n}, 1, f"org/levels, {n}") for n in ("easy", "hard")]
    )


READ_PICTURES = """
from cohobate.data.images import stored_image
from tasks.collect.hugging_face import HubDataset
for name in ("files", "rows"):
    source = HubDataset(type="hub", name="org/" + name, revision="{commit}")
    for row in source.source_records():
        print(row.columns["answer"], stored_image(row.columns["image"]["bytes"]).name)
"""


def test_pictures_come_as_they_were_uploaded(hub, tmp_path):
    done = online(hub, tmp_path / "home", READ_PICTURES.format(commit=COMMIT))
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    pictures = [(tmp_path / "files" / f"{number}.png").read_bytes() for number in range(2)]
    expected = [f"plant {stored_image(one).name}" for one in pictures]
    assert done.stdout.splitlines() == expected * 2


def test_another_commit_and_an_unknown_name_are_named(hub, tmp_path):
    for name, commit in (("questions", "d" * 40), ("answers", COMMIT)):
        done = online(hub, tmp_path / "home", READ.format(name=name, commit=commit))
        assert f"UserError: cannot read the data set org/{name}" in done.stderr


RESOLVE = """
from cohobate.models import checkpoints, hub
folder = hub.resolve("org/tiny", "main")
print(folder)
checkpoints.load(folder)
print(hub.source_of("org/tiny", folder))
"""


def test_a_teacher_on_the_hub_is_fetched_once_and_pinned(hub, tmp_path, checkpoint):
    done = online(hub, tmp_path / "home", RESOLVE)
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    folder, pinned = done.stdout.strip().splitlines()[-2:]
    assert pinned == str({"model": "org/tiny", "revision": COMMIT})
    weights = "model.safetensors"
    assert (Path(folder) / weights).read_bytes() == (checkpoint / weights).read_bytes()
    fetched = len([request for request in hub.requests if request.startswith("GET")])
    online(hub, tmp_path / "home", RESOLVE)
    again = [request for request in hub.requests if request.startswith("GET")][fetched:]
    assert not any("resolve" in request for request in again), again
