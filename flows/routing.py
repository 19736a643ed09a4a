"""The route of `cohobate serve --route`: its threshold, its teacher, and what it keeps."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from cohobate import params
from cohobate.data.records import ADAPT, ENDPOINT, EVALUATE
from cohobate.errors import UserError
from cohobate.serving.kept_prompts import TRAFFIC, KeptPrompts
from cohobate.serving.route_settings import ServeRoute
from flows.console import err, plain

if TYPE_CHECKING:
    from cohobate.serving.openai_api import AnsweringModel
    from cohobate.serving.routed_model import PricedTeacher, RoutedModel

ARRIVED = "cohobate.prompts.arrived"
"""The event that starts the next round; the triggers of infra/prefect.yaml expect it."""
RESOURCE = "cohobate.project"
_ROUTER = EVALUATE / "router.json"
_RUN = "cohobate run   (or dvc checkout, where the round was made elsewhere)"


@dataclass(frozen=True)
class Threshold:
    """From which confidence the student answers."""

    least: float
    handed_on: float | None = None
    """Share of the traffic that is handed on, by the report; None: not known."""

    def __str__(self) -> str:
        if self.least == inf:
            return "the student is never sure enough: every request is handed on"
        line = f"the student answers from a confidence of {self.least:.3f}"
        if self.handed_on is None:
            return line
        return f"{line}; by the report {self.handed_on:.0%} are handed on"


def threshold_of(route: ServeRoute, document: Mapping[str, Any], root: Path) -> Threshold:
    """Return the threshold of params.yaml, or else that of the last evaluation.

    That one was chosen on each half of the test rows for `evaluate.router.floor`: the higher of the
    two counts.

    Raises:
        UserError: no evaluation has chosen one, or it did for another floor.
    """
    if route.threshold is not None:
        return Threshold(route.threshold)
    path = root / _ROUTER
    if not path.exists():
        raise UserError(
            "no evaluation has said where the student is sure enough", where=str(path), fix=_RUN
        )
    router = json.loads(path.read_text())
    floor = (document["evaluate"].get("router") or {}).get("floor", router["floor"])
    if floor != router["floor"]:
        raise UserError(
            f"the floor is {floor:g}, and the last evaluation chose a threshold for "
            f"{router['floor']:g}",
            where="params.yaml, evaluate.router.floor",
            fix="cohobate run",
        )
    least = max(inf if one is None else one for one in router["thresholds"])
    return Threshold(least, 1 - router["share"])


def routed_model(
    folder: Path,
    student: "AnsweringModel",
    opener: Callable[[Path], "AnsweringModel"],
    root: Path,
) -> "RoutedModel":
    """Return a student that hands prompts on to the teacher of the project at `root`.

    Args:
        folder: the student's checkpoint.
        student: the same, loaded.
        opener: loads a checkpoint, for a teacher on this machine.
        root: the project's folder, the current one.

    Raises:
        UserError: there is no threshold, or the teacher cannot be used.
    """
    from cohobate.models import checkpoints
    from cohobate.serving.route_figures import FiguresFile
    from cohobate.serving.routed_model import RoutedModel

    document = params.load(root / params.PARAMS)
    route: ServeRoute = params.validated(ServeRoute, document.get("route") or {}, "route")
    threshold, teacher = threshold_of(route, document, root), document["evaluate"]["teacher"]
    _say(str(threshold))
    priced = _teacher(document, teacher, opener, route)
    kept = None
    if route.keep:
        kept = KeptPrompts(
            root,
            route.keep,
            # in a thread: the request that completed a file does not wait for Prefect
            lambda path, rows: Thread(target=_announce, args=(root, path, rows)).start(),
        )
        _say(f"prompts are kept in {TRAFFIC}{_no_source(document)}")
    figures = FiguresFile(root, checkpoints.fingerprint(folder), threshold.handed_on, _say)
    return RoutedModel(
        student,
        priced,
        threshold.least,
        figures,
        kept=kept,
        names=("student", teacher if teacher != "student" else "teacher"),
        unsure=route.without_teacher == "student",
    )


def _teacher(
    document: Mapping[str, Any],
    name: str,
    opener: Callable[[Path], "AnsweringModel"],
    route: ServeRoute,
) -> "PricedTeacher":
    """Return the teacher behind its endpoint, or from its weights."""
    from cohobate.backends.endpoint import Endpoint, read_address
    from cohobate.backends.run_teacher import generating_backend
    from cohobate.backends.settings import GenerateParams
    from cohobate.serving.routed_model import FreeTeacher
    from cohobate.serving.service_teacher import ServiceTeacher

    folder = ADAPT / name
    if not (folder / ENDPOINT).exists():
        if not (folder / "config.json").exists():
            raise UserError(f"there is no teacher {name!r}", where=str(folder), fix=_RUN)
        return FreeTeacher(opener(folder))
    generate: GenerateParams = params.validated(GenerateParams, document["generate"], "generate")
    backend = generating_backend(name, generate)
    if not isinstance(backend, Endpoint):
        raise UserError(
            f"the teacher {name} is behind an endpoint, and its backend is {backend.type}",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: openai}'",
        )
    if route.cap is not None and backend.price is None:
        raise UserError(
            "route.cap needs the price of the teacher's backend",
            where="params.yaml, generate.backend.price",
            fix="cohobate run --set 'generate.backend.price={input: 0.15, output: 0.60}'",
        )
    return ServiceTeacher(backend, read_address(folder), generate.ledger, route.cap)


def _no_source(document: Mapping[str, Any]) -> str:
    """Return a remark where no source of `collect` reads the kept prompts."""
    if traffic_sources(document):
        return ""
    return ", and no source of collect reads them: docs/serving.md has the settings"


def traffic_sources(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the sources that read the kept prompts."""
    sources = document["collect"].get("sources") or {}
    return [
        name
        for name, one in sources.items()
        if str(one["source"].get("path", "")).rstrip("/") == TRAFFIC.as_posix()
    ]


def _say(line: str) -> None:
    """Print a line of the log."""
    err.print(f"{datetime.now():%H:%M:%S}  {plain(line)}", highlight=False, soft_wrap=True)


def _announce(root: Path, path: Path, rows: int) -> None:
    """Send the event of new prompts to the Prefect server of the project, if one runs."""
    line = f"{path.relative_to(root)}: {rows} prompts"
    try:
        sent = send_event(root, {"file": path.name, "prompts": rows})
    except Exception as error:  # no server's fault may end a request
        _say(f"{line}; no event was sent: {' '.join(str(error).split())[:200]}")
        return
    _say(f"{line}; {'event ' + ARRIVED if sent else 'no Prefect server runs: cohobate up'}")


def send_event(root: Path, payload: Mapping[str, Any]) -> bool:
    """Send `cohobate.prompts.arrived`; return whether there is a server to send it to."""
    from flows.services import use_services

    use_services(root)
    if "PREFECT_API_URL" not in os.environ:
        return False
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    event = Event(event=ARRIVED, resource={"prefect.resource.id": RESOURCE}, payload=dict(payload))
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
    return True
