"""Take the README's pictures from the last round: the report, and the Prefect UI over it.

.venv/bin/python docs/screenshots.py [PROJECT]     needs chromium (Debian: apt install chromium)

PROJECT is the folder of the round; without it, this project's.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = Path(sys.argv[1]).resolve() if sys.argv[1:] else HERE.parent
PORT = 4217
SERVER = f"http://127.0.0.1:{PORT}"
ARTIFACTS = {
    "filter-funnel": ("prefect-funnel.png", 700),
    "champion-picture": ("prefect-champion-picture.png", 370),
}
"""File and height of the newest of each kind; what no round here has made yet is left out."""
BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-prefers-reduced-motion",
    "--run-all-compositor-stages-before-draw",  # else a page may be taken while it fades in
]  # fmt: skip


def main() -> None:
    """Write docs/*.png."""
    if (report := ROOT / "reports/report.html").exists():
        shoot(report.as_uri(), "report.png", (1280, 1500))
        shoot(report.as_uri(), "report-phone.png", (390, 1400))
    with prefect_ui():
        run = latest_round()
        shoot(f"{SERVER}/runs/flow-run/{run}", "prefect-graph.png", (1400, 900))
        for key, (name, height) in ARTIFACTS.items():
            newest = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
            for artifact in ask("artifacts/filter", newest):
                page = f"{SERVER}/artifacts/artifact/{artifact['id']}"
                shoot(page, name, (1400, height))
        for deployment in ask(
            "deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}}
        ):
            form = f"{SERVER}/deployments/deployment/{deployment['id']}/run"
            shoot(form, "prefect-form.png", (1400, 1100))


def shoot(url: str, name: str, size: tuple[int, int]) -> None:
    """Write a screenshot of a page, after giving it time to draw itself."""
    browser = shutil.which("chromium") or sys.exit("no chromium here: apt install chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        options += [f"--screenshot={HERE / name}", "--virtual-time-budget=40000", "--timeout=60000"]
        command = [browser, *BROWSER, *options, url]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(HERE / name)


@contextlib.contextmanager
def prefect_ui() -> Iterator[None]:
    """Serve the project's Prefect UI for the length of the block."""
    command = [str(Path(sys.executable).parent / "cohobate"), "ui", "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{SERVER}/api/health", timeout=5)
                break
            time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait(30)


def latest_round() -> str:
    """Return the id of the newest round that did some work."""
    rounds = {"name": {"any_": ["distill-round"]}}
    runs = ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 20, "flows": rounds})
    return max(runs, key=lambda run: run["total_run_time"])["id"]


def ask(route: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask Prefect's API."""
    request = urllib.request.Request(
        f"{SERVER}/api/{route}",
        data=json.dumps(query).encode(),
        headers={"Content-Type": "application/json"},
    )
    found: list[dict[str, Any]] = json.load(urllib.request.urlopen(request))
    return found


if __name__ == "__main__":
    main()
