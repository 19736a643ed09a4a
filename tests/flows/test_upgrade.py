"""A project of an earlier version goes on under the new names; nothing of it is lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from cohobate import params
from cohobate.params import ParamsError
from flows import params_schema
from flows.upgrade import renamed, upgrade
from tests.tiny_project import ROOT

OLD = ROOT / "tests/flows/params_of_an_earlier_version.yaml"
LOCK = """\
schema: '2.0'
stages:
  order:
    cmd: python -m tasks order
    deps:
    - path: data/filter
      hash: md5
      md5: 1.dir
    params:
      params.yaml:
        order:
          scorer: tasks/order/stage.py
        task:
          verifier:
            type: label
    outs:
    - path: data/order
      hash: md5
      md5: 2.dir
  train@kd:
    cmd: python -m tasks train@kd
    deps:
    - path: data/order/train.jsonl
      hash: md5
      md5: '3'
    - path: models/shape
      hash: md5
      md5: 4.dir
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(OLD, tmp_path / "params.yaml")
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


def test_an_earlier_params_yaml_is_refused_with_the_command_that_renames_it(root: Path) -> None:
    with pytest.raises(ParamsError, match="the section pair is called preferences") as refused:
        params_schema.check(params.load(root / "params.yaml"))
    assert refused.value.fix.startswith("cohobate upgrade")


def test_it_has_the_names_of_this_version_afterwards_and_its_comments(root: Path) -> None:
    changes = upgrade(root)
    document = params.load(root / "params.yaml")
    params_schema.check(document)
    assert document["train"]["kd"]["from"] == "init_student"
    assert document["train"]["kd"]["rows"] == "data/curriculum/train.jsonl"
    assert document["challenge"] == {"champion": "models/init_student"}
    assert document["collect"]["sources"] == {}
    assert document["evaluate"]["precision"] == "bfloat16"  # what was forced stays so
    assert "order is curriculum" in changes
    assert any(change.startswith("mine.student (kd)") or "hard_examples.student (kd)" in change
               for change in changes)  # fmt: skip
    text = (root / "params.yaml").read_text()
    assert "# a sixth of the teacher's thirty" in text
    assert upgrade(root) == []


def test_a_value_that_is_no_more_is_the_one_that_means_the_same(root: Path) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text().replace("generate:\n", "generate:\n  reasoning: inline\n"))
    assert "generate.reasoning: inline is keep" in upgrade(root)
    assert params.load(path)["generate"]["reasoning"] == "keep"
    assert upgrade(root) == []


def test_every_path_that_it_names_afterwards_is_there_or_an_output(root: Path) -> None:
    upgrade(root)
    document = params.load(root / "params.yaml")
    paths = [
        document["collect"]["source"]["path"], document["collect"]["replay"]["path"],
        document["filter"]["scorer"], document["preferences"]["student"],
        document["preferences"]["judge"], document["curriculum"]["scorer"],
    ]  # fmt: skip
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_lock_keeps_its_hashes_under_the_new_names(root: Path) -> None:
    upgrade(root)
    stages = YAML(typ="safe").load(root / "dvc.lock")["stages"]
    curriculum = stages["curriculum"]
    assert curriculum["cmd"] == "python -m tasks curriculum"
    assert curriculum["outs"][0] == {"path": "data/curriculum", "hash": "md5", "md5": "2.dir"}
    assert "curriculum" in curriculum["params"]["params.yaml"]
    assert [dep["path"] for dep in stages["train@kd"]["deps"]] == [
        "data/curriculum/train.jsonl",
        "models/init_student",
    ]


def test_two_sections_of_one_meaning_are_refused(root: Path) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text() + "\ncurriculum: {difficulty: {type: length}}\n")
    with pytest.raises(ParamsError, match="order and curriculum"):
        upgrade(root)


def test_sections_of_an_earlier_round_are_read_under_their_new_names() -> None:
    document = renamed(params.load(OLD))
    assert document["init_student"]["layers"] == [0, 1, 2, 3, 29]


def test_outputs_that_are_kept_have_the_folder_of_signals(root: Path, monkeypatch) -> None:
    """It is an output of `generate` that earlier versions did not have."""
    from cohobate.dvc_bridge import accepted_code, storage, versioning
    from flows import code_changes, upgrade

    addresses, kept = ["generate@main", "generate@second", "filter"], []
    stages = [SimpleNamespace(address=address) for address in addresses]
    monkeypatch.setattr(code_changes, "refresh_fingerprints", lambda _: None)
    monkeypatch.setattr(versioning, "locked_stages", lambda _: addresses[::2])
    monkeypatch.setattr(versioning, "stages", lambda _: stages)
    monkeypatch.setattr(storage, "pull_outputs", lambda _, names: kept.extend(names))
    monkeypatch.setattr(accepted_code, "accept", lambda *_: None)
    assert upgrade.keep_all(root) == addresses[::2] == kept
    (path,) = (root / "data/signals").glob("*/*")
    assert path == root / "data/signals/main/summary.json"
    assert json.loads(path.read_text()) == {"rows": 0, "tokens": 0}
