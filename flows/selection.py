"""Which stages of the graph a round takes, and what each asks of the machine."""

from typing import Any

from cohobate import params
from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows.resources import Resources


def select_stages(nodes: list[StageNode], only: str | None) -> list[StageNode]:
    """Return the stages up to and including `only`, in order; all of them without it.

    `only` is a stage (`filter`), one of its items (`train@kd`), or a name for all items (`train`).

    Raises:
        UserError: no stage has that name.
    """
    if only is None:
        return nodes
    keep = {node.address for node in nodes if only in (node.address, node.name)}
    if not keep:
        known = {name for node in nodes for name in (node.address, node.name)}
        where = "dvc.yaml"
        raise UserError(f"no stage is called {only!r}{params.nearest(only, known)}", where=where)
    for node in reversed(nodes):
        if node.address in keep:
            keep |= set(node.upstream)
    return [node for node in nodes if node.address in keep]


def resources_for(nodes: list[StageNode], document: dict[str, Any]) -> dict[str, Resources]:
    """Return what each stage asks for: its item's entry (`train@kd`), or its name's (`train`).

    Without an entry, it asks for one CPU slot; or for none, where it starts workers beside itself,
    which ask for slots of their own: holding one, it could wait for itself.
    """
    asked: dict[str, Resources] = params.validated(
        dict[str, Resources], document["resources"], "resources"
    )
    found = {}
    for node in nodes:
        entry = asked.get(node.address) or asked.get(node.name)
        alone = Resources(cpus=0 if _starts_workers(node, document) else 1)
        found[node.address] = entry or alone
    return found


def _starts_workers(node: StageNode, document: dict[str, Any]) -> bool:
    section, item = document.get(node.name), node.address.partition("@")[2]
    section = section.get(item) if item and isinstance(section, dict) else section
    return isinstance(section, dict) and section.get("workers", 1) > 1
