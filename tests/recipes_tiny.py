"""Every recipe and variant on tiny models as a user runs it: `make recipes-tiny`.

python -m tests.recipes_tiny             all of them
python -m tests.recipes_tiny gkd uld     these

Each has a fresh project: `cohobate run` through the flow, then `dvc repro` with nothing to do.
Prints a line for each with its exit code (0, or 3 where the gate was not met) and its seconds; ends
with 1 if one of them failed.
"""

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from tests import tiny_rounds
from tests.prefect_server import prefect_server
from tests.tiny_project import run
from tests.tiny_rounds import RECIPES, VARIANTS, Models, Round

GATE_NOT_MET = 3


def run_whole(folder: Path, what: Round, server: str) -> tuple[int, str]:
    """Run a round in a fresh project; return its exit code, and what was wrong, if anything was."""
    with tiny_rounds.service(what) as settings:
        options = [f"--recipe={what.recipe}"] if what.recipe else []
        for setting in tiny_rounds.smaller(folder, what, settings):
            options += ["--set", setting]
        done = run(folder, "cohobate", "run", *options, PREFECT_API_URL=server)
    if done.returncode not in (0, GATE_NOT_MET):
        return done.returncode, done.stderr
    try:
        tiny_rounds.check(folder, what)
    except AssertionError as error:
        return done.returncode, f"the outcome is not whole: {error}"
    again = run(folder, "dvc", "repro")
    if again.returncode or "Running stage" in again.stdout:
        return done.returncode, f"dvc repro had something to do:\n{again.stdout}{again.stderr}"
    return done.returncode, ""


def main(names: list[str]) -> int:
    """Run the rounds of these names, or all; return the exit code."""
    rounds = [what for what in [*RECIPES, *VARIANTS] if not names or what.name in names]
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="recipes-tiny-") as temporary,
        prefect_server(Path(temporary) / "prefect") as server,
    ):
        above = Path(temporary)
        models = Models(above / "models")
        for number, what in enumerate(rounds):
            if what.needs and not importlib.util.find_spec(what.needs):
                print(f"{what.name:<36} skipped: {what.needs} is not installed", flush=True)
                continue
            started = time.monotonic()
            folder = tiny_rounds.build(above / f"project-{number}", models)
            code, wrong = run_whole(folder, what, server)
            seconds = time.monotonic() - started
            verdict = "FAILED" if wrong else "ok"
            print(f"{what.name:<36} exit {code}  {seconds:6.1f} s  {verdict}", flush=True)
            if wrong:
                failed += 1
                print(wrong, file=sys.stderr)
    print(f"{len(rounds)} rounds, {failed} failed")
    return 1 if failed or not rounds else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
