"""Run the recipes at the sizes of the gallery, and keep what each showed: `make recipes`.

    python -m benchmarks.gallery                       all whose result is not current
    python -m benchmarks.gallery gkd zephyr --again    these, whether current or not
    python -m benchmarks.gallery --set collect.split.test=1000
    python -m benchmarks.gallery hinton-kd --from FOLDER    the result of a round that ran elsewhere

Each recipe runs in a git worktree of HEAD below .cohobate/gallery, with this project's DVC cache:
what recipes have in common is computed once. A run that was killed goes on where it was. The result
is docs/gallery/<recipe>.json; `python docs/gallery.py` makes the page of all of them.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cohobate import params
from cohobate.dvc_bridge import storage
from flows import overrides, recipes
from flows.git import git
from flows.recipe_heads import read_head

ROOT = Path()
RESULTS = Path("docs/gallery")
WORKTREES = Path(".cohobate/gallery")
SEEDS = "seeds=[1, 2, 3]"
GATE_NOT_MET = 3
FIGURES = (
    *("metric", "seeds", "test_rows", "teacher", "initial", "baseline", "student"),
    *("gain_over_baseline", "retention", "retention_low", "retention_high", "parameters_ratio"),
    *("speedup", "verdict"),
)
"""Of reports/metrics.json."""


class Run(NamedTuple):
    """One recipe with its settings."""

    recipe: str
    settings: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the recipe's file, without its ending."""
        return Path(self.recipe).stem

    @property
    def result(self) -> Path:
        """The file that keeps what it showed."""
        return RESULTS / f"{self.name}.json"

    @property
    def words(self) -> list[str]:
        """The command, as a user types it."""
        settings = [word for setting in self.settings for word in ("--set", setting)]
        return ["cohobate", "run", "--recipe", self.recipe, *settings]

    def params_hash(self) -> str:
        """Return the hash of what the recipe and the settings make of params.yaml."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for name in ("params.yaml", "dvc.yaml"):
                shutil.copy(ROOT / name, folder)
            shutil.copytree(ROOT / recipes.FOLDER, folder / recipes.FOLDER)
            overrides.apply(folder, [*self.settings], self.recipe)
            return _params_hash(folder)


def _params_hash(folder: Path) -> str:
    """Return a hash of what stages read of the params.yaml in a folder."""
    document = params.load(folder / params.PARAMS)
    kept = {k: v for k, v in document.items() if k not in ("recipe", "resources", "track")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def main() -> int:
    """Run the recipes that are named, or all; return the exit code."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*", help="such as gkd; all recipes where none is named")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options.add_argument("--again", action="store_true", help="also where the result is current")
    options.add_argument("--from", type=Path, dest="folder", help="folder of a round that ended")
    chosen = options.parse_args()
    known = {Path(path).stem: path for path in recipes.listed(ROOT)}
    if unknown := [name for name in chosen.names if name not in known]:
        options.error(f"no recipe is called {', '.join(unknown)}: cohobate recipes")
    if chosen.folder and len(chosen.names) != 1:
        options.error("--from takes the name of one recipe")
    failed = 0
    for name in chosen.names or known:
        # a later --set of the same key wins
        settings = {one.partition("=")[0]: one for one in [SEEDS, *chosen.settings]}
        run = Run(known[name], [*settings.values()])
        if chosen.folder:
            line = _of_other_run(run, chosen.folder)
        elif not chosen.again and _is_current(run):
            line = "current"
        else:
            line = _whole(run)
        failed += line.startswith("FAILED")
        print(f"{name:<24} {line}", flush=True)
    return int(failed > 0)


def _is_current(run: Run) -> bool:
    if not run.result.exists():
        return False
    result: dict[str, Any] = json.loads(run.result.read_text())
    return bool(result["params"] == run.params_hash())


def _of_other_run(run: Run, folder: Path) -> str:
    """Keep the result of a round that ran in another folder, with the same params."""
    if _params_hash(folder) != run.params_hash():
        return f"FAILED: {folder} ran with other params: repeat with its --set KEY=VALUE"
    return _kept(run, folder, None)


def _whole(run: Run) -> str:
    """Run a recipe in its worktree, keep its result, and return its line."""
    folder, resumed = _worktree(run.name)
    log = WORKTREES / f"{run.name}.log"
    started = time.monotonic()
    with log.open("w") as out:
        if first := read_head(ROOT / run.recipe).first:
            words = [sys.executable, *shlex.split(first)[1:]]  # python -m ...
            subprocess.run(words, cwd=folder, stdout=out, stderr=out, check=True)
        command = [str(Path(sys.executable).with_name("cohobate")), *run.words[1:], "--json"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=out, check=False)
    seconds = time.monotonic() - started
    if done.returncode not in (0, GATE_NOT_MET):
        return f"FAILED with exit code {done.returncode}: {log}"
    stages = json.loads(done.stdout)["stages"]
    restored = sorted(name for name, stage in stages.items() if stage["outcome"] == "restored")
    line = _kept(run, folder, None if resumed else seconds, restored)
    git(ROOT, "worktree", "remove", "--force", str(folder), check=False)
    return line


def _worktree(name: str) -> tuple[Path, bool]:
    """Return the worktree of a recipe, and whether a killed run left it; new if HEAD has moved."""
    folder = (WORKTREES / name).absolute()
    head = git(ROOT, "rev-parse", "HEAD")
    if folder.exists() and git(folder, "rev-parse", "HEAD", check=False) != head:
        git(ROOT, "worktree", "remove", "--force", str(folder), check=False)
        shutil.rmtree(folder, ignore_errors=True)
    resumed = folder.exists()
    if not resumed:
        building = folder.with_name(f".{name}")  # renamed when it is complete
        building.parent.mkdir(parents=True, exist_ok=True)
        git(ROOT, "worktree", "remove", "--force", str(building), check=False)
        git(ROOT, "worktree", "prune")
        git(ROOT, "worktree", "add", "--quiet", "--detach", str(building), head)
        git(ROOT, "worktree", "move", str(building), str(folder))
    # settings of the run that was killed would stay
    git(folder, "checkout", "--quiet", "--", str(params.PARAMS))
    storage.share_storage(ROOT.absolute(), folder)
    return folder, resumed


def _kept(run: Run, folder: Path, seconds: float | None, restored: Sequence[str] = ()) -> str:
    """Write the result of a recipe that ran in a folder; return its line."""
    reports = folder / "reports"
    metrics = json.loads((reports / "metrics.json").read_text())
    timings = json.loads((reports / "timings.json").read_text())
    stages = json.loads((reports / "stages.json").read_text())
    # of a run in several goes the seconds of its stages, one after the other
    whole = sum(stage["seconds"] for stage in stages.values()) if seconds is None else seconds
    result = {
        "command": shlex.join(run.words),
        "exit_code": 0 if metrics["gate"]["passed"] else GATE_NOT_MET,
        "processor": f"{os.cpu_count()} cores of {timings['machine']}, {metrics['number_format']}",
        "minutes": round(whole / 60, 1),
        "from_cache": [*restored],
        "params": _params_hash(folder),
        "metrics": {name: metrics[name] for name in FIGURES if name in metrics},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps(result, indent=1) + "\n")
    gain = metrics["gain_over_baseline"]
    interval = f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    from_cache = f", {len(restored)} stages from the cache" if restored else ""
    return (
        f"exit {result['exit_code']}  {result['minutes']:5.1f} min{from_cache}  "
        f"{interval} over the baseline"
    )


if __name__ == "__main__":
    sys.exit(main())
