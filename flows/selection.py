"""Select the stages of a round, and the resources that each requests."""

from typing import Any

from cohobate import params
from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows.cluster_capacity import Engines
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
        fix = "cohobate status   (lists the stages)"
        what = f"there is no stage {only!r}{params.nearest(only, known)}"
        raise UserError(what, where=where, fix=fix)
    for node in reversed(nodes):
        if node.address in keep:
            keep |= set(node.upstream)
    return [node for node in nodes if node.address in keep]


def resources_for(nodes: list[StageNode], document: dict[str, Any]) -> dict[str, Resources]:
    """Return the resources of each stage: the entry of its item (`train@kd`) or name (`train`).

    Without an entry a stage requests one CPU slot, or none where it starts workers, which request
    slots of their own: with a slot it could wait for itself.
    """
    entries: dict[str, Resources] = params.validated(
        dict[str, Resources], document["resources"], "resources"
    )
    resources = {}
    for node in nodes:
        entry = entries.get(node.address) or entries.get(node.name)
        default = Resources(cpus=0 if _workers(node, document) > 1 else 1)
        resources[node.address] = entry or default
    return resources


def workers_of(nodes: list[StageNode], document: dict[str, Any]) -> dict[str, int]:
    """Return how many workers each stage starts, for those that start several."""
    counts = {node.address: _workers(node, document) for node in nodes}
    return {address: count for address, count in counts.items() if count > 1}


def engines_of(nodes: list[StageNode], document: dict[str, Any]) -> dict[str, Engines]:
    """Return the copies of a model on GPUs that each stage starts, for those that start some."""
    engines = {}
    for node in nodes:
        section: Any = document.get(node.name) or {}
        item = node.address.partition("@")[2]
        for key in _BACKENDS.get(node.name, ()):
            where, backend = f"{node.name}.{key}", section.get(key)
            if key == "backend" and item in (section.get("backends") or {}):
                where, backend = f"{node.name}.backends.{item}", section["backends"][item]
            if isinstance(backend, dict) and (started := _engines(backend, where)):
                engines[node.address] = started
        if node.name in ("train", "assist", "capture") and (teachers := _teachers(node, section)):
            engines[node.address] = teachers
    return engines


def _teachers(node: StageNode, section: dict[str, Any]) -> Engines | None:
    """Return the teacher's copies in Ray actors of a phase, or of a capture."""
    item = node.address.partition("@")[2]
    key = "capture" if node.name == "capture" else f"{node.name}.{item}"
    settings = (section if node.name == "capture" else section.get(item) or {}).get(
        "teacher_workers"
    )
    if not settings or not settings.get("gpus_each"):
        return None
    where = f"{key}.teacher_workers"
    count = settings.get("workers", 1)
    return Engines(where, count, settings["gpus_each"], True, f"{where}.workers")


def _engines(backend: dict[str, Any], where: str) -> Engines | None:
    if backend.get("type") == "vllm":
        gpus, count = backend.get("gpus", 1) * backend.get("stages", 1), backend.get("replicas", 1)
        return Engines(where, count, gpus, count > 1, f"{where}.replicas")
    workers, gpus = backend.get("workers", 1), backend.get("gpus_each", 0)
    if backend.get("type") == "transformers" and workers > 1 and gpus:
        return Engines(where, workers, gpus, True, f"{where}.workers")
    return None


_BACKENDS = {
    "adapt": ("dev_backend",),
    "generate": ("backend",),
    "evaluate": ("backend",),
    "challenge": ("backend",),
}
"""Settings of what generates answers, by the section."""


def _workers(node: StageNode, document: dict[str, Any]) -> int:
    section, item = document.get(node.name), node.address.partition("@")[2]
    section = section.get(item) if item and isinstance(section, dict) else section
    return int(section.get("workers", 1)) if isinstance(section, dict) else 1


def nearest_upstream(nodes: list[StageNode]) -> dict[str, list[str]]:
    """Return for each stage the stages that it waits for, without those that these wait for.

    The order is the same, and Prefect's graph of the run has an arrow for each step of it alone. A
    stage that was not selected counts as up to date.
    """
    ancestors: dict[str, set[str]] = {}
    nearest: dict[str, list[str]] = {}
    for node in nodes:
        selected = [address for address in node.upstream if address in ancestors]
        implied = set().union(*(ancestors[address] for address in selected))
        ancestors[node.address] = implied | set(selected)
        nearest[node.address] = [address for address in selected if address not in implied]
    return nearest
