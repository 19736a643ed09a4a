"""What the flow costs beyond the stages' own work, and many rounds on one server at once.

python -m benchmarks.overhead            prints tables, writes benchmarks/overhead.json
python -m benchmarks.overhead --check    exits 1 where a target does not hold

On a miniature project with the real dvc.yaml and stages, and for the last on stages that are stood
in for. The reference of a round with nothing to do: `dvc repro`, in turns.

| target | what |
|---|---|
| a stage | ≤ 3 s a stage beyond its own function; the heavy libraries imported once a worker |
| a round | one with nothing to do ≤ `dvc repro` + 2 s; a restored one ≤ 3 times the flow's no-op |
| – | 1, 4 and 8 rounds at once on one server with SQLite and one Ray: no task run without an end |
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.outcome import parser, tell
from tests import tiny_project
from tests.flows import quick_project
from tests.flows.cluster import THIS_MACHINE, two_nodes
from tests.prefect_server import prefect_server
from tests.tiny_project import run

_TURNS = 3


Targets = dict[str, tuple[float, str, float]]


def main() -> int:
    """Measure, print, write; return the exit code."""
    options = parser(__doc__ or "", "overhead")
    options.add_argument("--at-once", type=int, nargs="*", default=[1, 4, 8], help="rounds at once")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder) / "prefect") as url:
        os.environ["PREFECT_API_URL"] = url
        root = _project(Path(folder))
        lines, targets = _one_round(root)
        _report(targets)
        for measure in (_no_op, _restored):
            targets |= _report(measure(root))
        # one Ray for all: as many as there are rounds would be the slower ones
        with two_nodes(THIS_MACHINE, Path(folder), hidden=[]) as known:
            os.environ |= known
            for count in chosen.at_once:
                targets |= _report(_at_once(Path(folder), url, count))
    return tell(chosen, lines, targets)


def _report(targets: Targets) -> Targets:
    for name, (figure, _, _) in targets.items():
        print(f"  {name}: {figure:.2f}", file=sys.stderr, flush=True)
    return targets


def _project(folder: Path) -> Path:
    teacher = tiny_project.build_teacher(folder / "teacher")
    root = tiny_project.build(folder / "project", teacher)
    _round(root)  # the packages are read from disk, once
    for name in ("data", "models", "reports", ".dvc/cache", ".cohobate", "dvc.lock"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return root


def _round(root: Path, *options: str) -> tuple[float, dict[str, Any]]:
    started = time.monotonic()
    done = run(root, "cohobate", "run", "--json", *options, timeout=900)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return time.monotonic() - started, json.loads(done.stdout)


def _one_round(root: Path) -> tuple[list[dict[str, Any]], Targets]:
    _round(root)
    stages = json.loads((root / "reports/stages.json").read_text())
    lines = [
        {"stage": name, "beyond its own work": stage["seconds"] - stage["own_seconds"]} | stage
        for name, stage in stages.items()
    ]
    beyond = [line["beyond its own work"] for line in lines]
    slowest = max(lines, key=lambda line: line["beyond its own work"])
    print(f"  most beyond its own function: {slowest['stage']}", file=sys.stderr)
    workers = len({stage["worker"] for stage in stages.values()})
    return lines, {
        "most seconds a stage beyond its own function": (max(beyond), "<=", 3.0),
        "mean of them": (statistics.fmean(beyond), "<=", 3.0),
        "workers that imported the libraries": (workers, "<=", os.cpu_count() or 1),
    }


def _no_op(root: Path) -> Targets:
    flow, dvc = [], []
    for _ in range(_TURNS):
        flow.append(_round(root)[0])
        started = time.monotonic()
        run(root, "dvc", "repro").check_returncode()
        dvc.append(time.monotonic() - started)
    more = statistics.median(flow) - statistics.median(dvc)
    return {"seconds of a no-op beyond those of `dvc repro`": (more, "<=", 2.0)}


def _restored(root: Path) -> Targets:
    """Compare a round that restores every output with one of the same flow that finds all there."""
    no_op = _through_the_flow(root)
    for name in ("data", "models"):
        shutil.rmtree(root / name)
    ratio = _through_the_flow(root) / no_op
    return {"a restored round, in no-ops of the flow": (ratio, "<=", 3.0)}


def _through_the_flow(root: Path) -> float:
    """Return the seconds of the flow run itself, as Prefect counts them."""
    command = "from flows.distill_round import distill_round as d; import pathlib, time;"
    command += "t = time.monotonic(); d(pathlib.Path('.')); print(time.monotonic() - t)"
    done = subprocess.run(
        [str(tiny_project.BIN / "python"), "-c", command],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def _at_once(folder: Path, url: str, count: int) -> Targets:
    """Run rounds side by side on one server; count task runs that never came to an end.

    Their stages take a tenth of a second: what is measured is the server, and states come faster.
    """
    places = [quick_project.build(folder / f"copy-{count}-{number}") for number in range(count)]
    before = _task_runs(url)
    rounds = [quick_project.start(place, "cohobate", "run") for place in places]
    for one in rounds:
        output = one.communicate(timeout=600)[0]
        if one.returncode:
            raise SystemExit(output)
    new = {name: state for name, state in _task_runs(url).items() if name not in before}
    open_ended = sum(state not in ("COMPLETED", "FAILED") for state in new.values())
    lost = max(0, sum(len(quick_project.ran(place)) for place in places) - len(new)) + open_ended
    return {f"states lost with {count} rounds at once ({len(new)} task runs)": (lost, "<=", 0)}


def _task_runs(url: str) -> dict[str, str]:
    states: dict[str, str] = {}
    while True:
        query = json.dumps({"limit": 200, "offset": len(states)}).encode()
        kind = {"Content-Type": "application/json"}
        with urlopen(Request(f"{url}/task_runs/filter", data=query, headers=kind)) as answer:
            page = json.loads(answer.read())
        states |= {task["id"]: task["state_type"] for task in page}
        if len(page) < 200:
            return states


if __name__ == "__main__":
    sys.exit(main())
