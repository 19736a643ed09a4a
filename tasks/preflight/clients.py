"""Checks of a round with clients, whose teachers' weights and answers are not to be had."""

from collections.abc import Iterator, Mapping
from typing import Any

from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.teachers.teacher import Teachers

_MODELS = "models/adapt"


def check_clients(
    teachers: Teachers, phases: Mapping[str, Method], document: Mapping[str, Any]
) -> None:
    """Refuse a round that needs more of a client's teacher than its distributions.

    Args:
        teachers: by their keys.
        phases: by their keys in params.yaml.
        document: params.yaml.

    Raises:
        UserError: it names the client, and the key that needs its weights or its answers.
    """
    clients = {key for key, teacher in teachers.items() if teacher.client}
    for key, name in _needing_weights(phases, document):
        if name in clients:
            raise UserError(
                f"{key} needs the weights of {name}, which stay with the client",
                where=f"params.yaml, {key}",
                fix="name a teacher that has no client; phases learn from data/capture/<client>",
            )
    signals = (document.get("capture") or {}).get("signals") or {}
    if clients and signals.get("by") == "votes":
        raise UserError(
            f"votes are counted among a teacher's answers, and the client {min(clients)} gives "
            "distributions alone",
            where="params.yaml, capture.signals",
            fix="cohobate run --set 'capture.signals={type: labels}'",
        )


def _needing_weights(
    phases: Mapping[str, Method], document: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield each key whose teacher must be here, and the teacher."""
    for section in ("evaluate", "init_student"):
        name = (document.get(section) or {}).get("teacher")
        if name:
            yield f"{section}.teacher", name
    for task, name in ((document.get("generate") or {}).get("routes") or {}).items():
        yield f"generate.routes.{task}", name
    for key, phase in phases.items():
        targets = getattr(phase, "targets", "")
        above, _, name = targets.rpartition("/")
        if above == _MODELS:
            yield f"{key}.targets", name
        if targets == _MODELS:
            yield from ((f"{key}.teachers", one) for one in getattr(phase, "teachers", None) or ())
