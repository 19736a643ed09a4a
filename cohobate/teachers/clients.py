"""Clients of a federation: teachers whose rows and weights stay in a folder of their own.

A client's folder holds its rows, `rows.jsonl`, and later its tuned teacher, `model/`. The stages
that need them run in that folder, in a process of their own: what they read of the round is copied
in, and of what they write nothing is copied out but figures, and distributions over the round's
public prompts. The student learns the mean of these (Li & Wang 2019, "FedMD: Heterogenous Federated
Learning via Model Distillation", section 3; Lin et al. 2020, "Ensemble Distillation for Robust
Model Fusion in Federated Learning", section 3).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML

from cohobate import params
from cohobate.data.records import ADAPT, write_json
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.params import Section
from cohobate.progress import say

RECORD = "client.json"
"""Below models/adapt/<teacher>: what the round knows of a client's teacher."""
ROWS = "rows.jsonl"
MODEL = "model"


class Client(Section):
    """The client of a federation that a teacher belongs to."""

    folder: str
    """Folder with the client's `rows.jsonl`, rows with answers as in data/collect/labelled.jsonl.
    Neither git nor DVC watches it. Its stages run where `resources` places them."""
    version: int = Field(1, ge=1)
    """Version of these rows, which the client counts: with another one its teacher is tuned
    anew."""

    @property
    def rows(self) -> Path:
        """The file with the client's rows."""
        return Path(self.folder) / ROWS

    @property
    def model(self) -> Path:
        """The folder of the client's tuned teacher."""
        return Path(self.folder) / MODEL

    def run(
        self, stage: str, item: str, given: Mapping[Path, Path], taken: Sequence[Path]
    ) -> dict[str, int]:
        """Run a stage in the client's folder; return how many bytes went in, and came out.

        Args:
            stage: its name.
            item: the key of the client's teacher.
            given: files and folders that the stage reads, by the path at which it reads them.
                Those in the client's own folder are linked, and do not count.
            taken: files and folders that are copied out of what it writes.

        Raises:
            UserError: the stage failed.
        """
        work = Path(self.folder) / "stages" / stage
        work.mkdir(parents=True, exist_ok=True)
        into = sum(self._give(source, work / path) for path, source in given.items())
        into += _write_params(work / params.PARAMS, item)
        self._run_process(stage, item, work)
        out = sum(_copy(work / path, path) for path in taken)
        return {"bytes_to_client": into, "bytes_from_client": out}

    def _give(self, source: Path, place: Path) -> int:
        """Put a file or folder where the stage reads it; return the bytes that the round gave."""
        if not source.exists():
            return 0
        if not source.is_relative_to(self.folder):
            return _copy(source, place)
        _remove(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source.absolute())
        return 0

    def _run_process(self, stage: str, item: str, work: Path) -> None:
        search = [str(Path().absolute()), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks", f"{stage}@{item}"],
            cwd=work,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        lines = []
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                say(lines[-1])
        finally:
            # a round that is stopped leaves no process in the client's folder
            process.terminate()
            process.wait()
        if process.returncode:
            raise UserError(
                f"{stage} of the client {item} failed: {_error_in(lines)}",
                where=str(work),
                fix=f"cd {work} && {Path(sys.executable).name} -m tasks {stage}@{item} --debug",
            )

    def publish(self, item: str, rows: int) -> None:
        """Keep the tuned teacher in the client's folder, and write what the round knows of it."""
        tuned = Path(self.folder) / "stages/adapt" / ADAPT / item
        _remove(self.model)
        tuned.rename(self.model)
        known = {"fingerprint": checkpoints.fingerprint(self.model), "rows": rows}
        write_json(ADAPT / item / RECORD, known | {"bytes_of_weights": size_of(self.model)})

    def check_model(self, item: str) -> None:
        """Refuse a tuned teacher that is not the one that `adapt` left.

        Raises:
            UserError: it is another one, or is not there.
        """
        known = json.loads((ADAPT / item / RECORD).read_bytes())
        if self.model.is_dir() and checkpoints.fingerprint(self.model) == known["fingerprint"]:
            return
        raise UserError(
            f"the teacher of the client {item} is not the one that adapt tuned",
            where=str(self.model),
            fix=f"dvc repro --force --single-item adapt@{item}",
        )


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_params(path: Path, item: str) -> int:
    """Write the params of the round for the client: its teacher alone, as if it were here."""
    document = params.load()
    teacher = {k: v for k, v in document["teachers"][item].items() if k != "client"}
    # a folder beside params.yaml
    if Path(teacher["model"]).exists():
        teacher["model"] = str(Path(teacher["model"]).absolute())
    whole: dict[str, Any] = {**document, "teachers": {item: teacher}}
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(whole, file)
    return path.stat().st_size


def _copy(source: Path, place: Path) -> int:
    """Copy a file or folder in the place of what is there; return its bytes."""
    _remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, place)
    return size_of(place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _error_in(lines: Sequence[str]) -> str:
    """Return the message of the error that a process printed last."""
    starts = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[starts[-1] :])[len("error: ") :] if starts else "it was killed"
