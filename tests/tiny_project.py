"""A whole project in miniature: the real dvc.yaml and stages, a teacher of few weights."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from tests import tiny_models

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
KINDS = {"animal": "beast fur paw", "plant": "leaf root stem", "person": "human man woman"}

TINY: dict[str, Any] = {
    "collect.source": {"type": "files", "path": "rows.jsonl", "group": "answer"},
    "collect.split": {"seed": 0, "labelled": 40, "unlabelled": 80, "dev": 20, "test": 40},
    "teachers.main.model": "teacher",
    "adapt.epochs": 20,
    "adapt.learning_rate": 0.01,
    "adapt.freeze": {"embeddings": False, "layers": 0},
    "generate.backend": {"type": "transformers", "threads": 1},
    "capture.threads": 1,
    "filter.filters": [{"type": "exact_duplicates"}],
    "init_student.layers": [0, 1],
    "train.baseline.updates": 4,
    "train.kd.updates": 4,
    "evaluate.threads": 1,
    "evaluate.bootstrap": 200,
    "evaluate.timing": {"seconds": 0.2},
    "export.threads": 1,
    "resources": {},
}


def build(folder: Path, teacher: Path, settings: dict[str, Any] | None = None) -> Path:
    """Lay out a git and DVC project in `folder`: real stages, tiny rows, the teacher beside."""
    for package in ("cohobate", "tasks"):
        source = ROOT / package
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(teacher, folder / "teacher")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    yaml = YAML()
    document = yaml.load(ROOT / "params.yaml")
    for key, value in (TINY | (settings or {})).items():
        put(document, key, value)
    yaml.dump(document, folder / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def build_teacher(folder: Path) -> Path:
    """Write a teacher in Hugging Face format: random weights, which `adapt` tunes."""
    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def put(document: Any, key: str, value: Any) -> None:
    """Set the dotted `key` of a document."""
    *parents, last = key.split(".")
    for parent in parents:
        document = document[parent]
    if isinstance(value, list):  # written as params.yaml has it
        value = CommentedSeq(value)
        value.fa.set_flow_style()
    document[last] = value


def rows() -> list[dict[str, str]]:
    """Glosses that a few words give away, so that there is something to learn."""
    draw = random.Random(0)
    kinds: dict[str, str] = {}
    while len(kinds) < 240:
        kind = draw.choice(sorted(KINDS))
        words = [draw.choice(KINDS[kind].split()), *draw.sample("abcdefghijklmnop", 5)]
        kinds[" ".join(draw.sample(words, len(words)))] = kind
    return [{"text": text, "answer": kind} for text, kind in kinds.items()]


def write_client_rows(folder: Path) -> None:
    """Write the rows of a client: each has a word that no row of the round has."""
    own = [
        {"id": f"{n:016x}", "prompt": f"Definition: secret{folder.name} {word} {n}\nCategory:"}
        | {"answer": f" {kind}", "group": kind, "origin": "ground_truth"}
        for n in range(4)
        for kind, words in KINDS.items()
        for word in words.split()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))


def run(
    folder: Path, *command: str, timeout: int = 900, typed: str | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Run one of the environment's own commands in a project, as a person would."""
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env=os.environ | {"PATH": path, "COHOBATE_CACHE": str(folder.parent / "cache")} | env,
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def outcomes(folder: Path, *options: str, **env: str) -> dict[str, str]:
    """Run a round through the flow; return the outcome of each stage."""
    done = run(folder, "cohobate", "run", "--json", *options, **env)  # type: ignore[arg-type]
    assert done.returncode in (0, 3), done.stderr  # a tiny round need not meet the gate
    return {a: stage["outcome"] for a, stage in json.loads(done.stdout)["stages"].items()}
