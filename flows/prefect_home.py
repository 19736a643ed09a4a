"""Which Prefect server a round talks to. Import before anything that imports prefect.

Where `PREFECT_API_URL` is set, that server. Otherwise an ephemeral one on loopback, whose database
stays in the project (`.cohobate/prefect`), so that `cohobate ui` shows the round afterwards.
"""

import os
from pathlib import Path

STATE = Path(".cohobate")


def use_project_server(root: Path) -> None:
    """Point Prefect at the project's own database, unless the user has a server of their own."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
    # Pickled results would be code that anyone who can write them runs here.
    os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    if "PREFECT_API_URL" in os.environ:
        return
    home = (root / STATE / "prefect").absolute()
    home.mkdir(parents=True, exist_ok=True)  # Prefect itself makes only the last folder
    os.environ.setdefault("PREFECT_HOME", str(home))
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    # The default of 20 s is less than a cold start takes on a small machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
