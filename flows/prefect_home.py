"""Choose the Prefect server of a round. Call before anything imports prefect.

The server is that of `PREFECT_API_URL`, or else an ephemeral one on loopback, whose database stays
in the project (`.cohobate/prefect`), so that `cohobate ui` shows the round afterwards.
"""

import os
from pathlib import Path

STATE = Path(".cohobate")


def use_project_server(root: Path) -> None:
    """Point Prefect at the project's own database, unless the user has a server of their own."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
    # Unpickling a result would run code of anyone who can write results.
    os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    if "PREFECT_API_URL" in os.environ:
        return
    home = (root / STATE / "prefect").absolute()
    home.mkdir(parents=True, exist_ok=True)  # Prefect creates only the last folder
    os.environ.setdefault("PREFECT_HOME", str(home))
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    # The default of 20 s is less than a cold start takes on a small machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
