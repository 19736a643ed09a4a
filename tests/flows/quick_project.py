"""A project whose rounds are real and whose stages are not: no model, a second or two each.

Worktrees, gate, commits and tags, Prefect and Ray are the project's own. Each stage leaves a line
in a file beside the project, so that a test can count how often it ran.
"""

import os
import shutil
import subprocess
from pathlib import Path

from flows.git import git
from tests.tiny_project import BIN, ROOT

STAGES = """\
stages:
  collect:
    cmd: python stand_in.py collect
    deps: [stand_in.py]
    params: [collect]
    outs: [data/collect]
  train:
    foreach: ${train}
    do:
      cmd: python stand_in.py train ${key}
      deps: [data/collect]
      params: ["train.${key}"]
      outs: ["models/train/${key}"]
  challenge:
    cmd: python stand_in.py challenge
    deps: [models/train]
    metrics:
      - reports/metrics.json: {cache: false}
      - reports/challenge.json: {cache: false}
  hard_examples:
    cmd: python stand_in.py hard_examples
    deps: [models/train]
    outs: [data/hard_examples]
"""
STAND_IN = """\
import json, pathlib, sys, time

stage, folder = sys.argv[1], pathlib.Path({folder!r})
with (folder / "ran").open("a") as log:
    log.write(stage + "\\n")
mode = folder / "mode"
how = mode.read_text() if mode.exists() else ""
if how in ("crash " + stage, "hog " + stage):
    import psutil

    worker = next(p for p in psutil.Process().parents() if p.name().startswith("ray::"))
    if how.startswith("crash"):
        worker.kill()
    else:
        mode.unlink()  # the next time it does its work
        hoard = bytearray(b"x") * (psutil.virtual_memory().total // 4)
        worker.wait(60)
    sys.exit(1)
time.sleep(float(how.split()[1]) if how.startswith("slow") and stage == "train" else 0.1)


def write(path, value):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


if stage == "collect":
    write("data/collect/summary.json", {"unused": 10**9})
if stage == "train":
    from ruamel.yaml import YAML

    phase = YAML(typ="safe").load(pathlib.Path("params.yaml"))["train"][sys.argv[2]]
    write(f"models/train/{sys.argv[2]}/seed-1/weights.json", phase["learning_rate"])
if stage == "challenge":
    gain = {"mean": 0.1, "low": 0.05, "high": 0.2}
    rate = json.loads(pathlib.Path("models/train/kd/seed-1/weights.json").read_text())
    alike = dict.fromkeys(("parameters", "flops_per_token", "blocks"), 1.0)
    write("reports/challenge.json", {"promote": True, "why": "so", "seed": 1, "champion": 0.4,
          "challenger": round(0.5 + 10 * (rate - 2e-3), 6), "gain": gain,
          "intervals": {"champion": gain, "challenger": gain},
          "growth": alike})
    arms = dict.fromkeys(("teacher", "initial", "baseline", "student"), {"score": 0.5})
    gate = {"gate": {"passed": True}, "gain_over_baseline": gain}
    figures = {"metric": "verifier", "retention": 0.9, "retention_low": 0.8}
    write("reports/metrics.json", {**arms, **gate, **figures})
if stage == "hard_examples":
    write("data/hard_examples/hardest.jsonl", {})
"""


def build(folder: Path) -> Path:
    """Lay the project out, committed."""
    root = folder / "project"
    for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", "params.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "infra").mkdir()
    shutil.copy(ROOT / "infra/prefect.yaml", root / "infra/prefect.yaml")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "stand_in.py").write_text(STAND_IN.replace("{folder!r}", repr(str(folder))))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a project")
    return root


def environment(**more: str) -> dict[str, str]:
    """Return what its processes need to know."""
    path = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **more}


def start(root: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """Start one of the environment's commands in the project, in a process group of its own."""
    return subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        cwd=root,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ran(root: Path) -> list[str]:
    """Return the stages that ran so far, in order."""
    log = root.parent / "ran"
    return log.read_text().split() if log.exists() else []
