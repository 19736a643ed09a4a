"""What a Ray cluster can hold: stages that fit on no node, workers that find no slot."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cohobate.errors import UserError
from flows.resources import Resources


@dataclass(frozen=True)
class Engines:
    """Copies of a model that a stage starts on GPUs."""

    key: str
    """Where they stand in params.yaml, such as `generate.backend`."""
    count: int
    gpus: float
    """Of each copy."""
    are_actors: bool
    """Whether they are Ray actors with GPUs of their own; else the stage's process has it."""
    count_key: str
    """The key of `count`."""


def as_ray_counts(resources: Resources) -> dict[str, float]:
    """Return the resources of a stage under Ray's names."""
    counts = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    counts["memory"] = resources.memory_gb * 2**30
    return {name: count for name, count in counts.items() if count}


def check(
    alive: Sequence[Mapping[str, Any]],
    needs: Mapping[str, Resources],
    workers: Mapping[str, int],
    engines: Mapping[str, Engines] = MappingProxyType({}),
    entries: Collection[str] = (),
) -> None:
    """Refuse a round with a stage that fits on no node, which Ray would let wait forever.

    Args:
        alive: the nodes of the cluster, as `ray.nodes()` has them.
        needs: resources of each stage.
        workers: processes that a stage starts beside itself, for those that start several.
        engines: copies of a model on GPUs, for stages that start some.
        entries: keys of the section `resources`.

    Raises:
        UserError: names the stage and its resources, and what would fit.
    """
    for address, resources in needs.items():
        entry = f"resources.{address if address in entries else address.partition('@')[0]}"
        counts = as_ray_counts(resources)
        nodes = [node["Resources"] for node in alive if _has_labels(node, resources.labels)]
        # all on one node: Ray does not split a task over nodes
        if not any(all(node.get(k, 0) >= v for k, v in counts.items()) for node in nodes):
            labels = f" with the labels {resources.labels}" if resources.labels else ""
            raise UserError(
                f"no node of the cluster{labels} has the resources of {address}: "
                f"{_in_words(counts)}",
                where=f"params.yaml, {entry}",
                fix=_smaller(entry, counts, nodes),
            )
        if count := workers.get(address):
            _check_workers(address, count, counts, nodes)
        if address in engines:
            _check_engines(address, engines[address], resources, nodes, entry)


def _in_words(counts: Mapping[str, float]) -> str:
    """Return counts as text, memory in GiB."""
    return ", ".join(
        f"{count / 2**30:g} GiB of memory" if name == "memory" else f"{count:g} {name}"
        for name, count in counts.items()
    )


def _smaller(entry: str, counts: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """Return the fix: what the node has that comes nearest, in place of what it lacks."""
    if not nodes:
        return (
            f"cohobate run --set 'resources.{entry.partition('.')[2]}.labels={{}}', or add a node"
        )
    lacks = [
        {name: node.get(name, 0) for name, count in counts.items() if node.get(name, 0) < count}
        for node in nodes
    ]
    names = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}
    settings = []
    for name, has in min(lacks, key=len).items():
        value = int(10 * has / 2**30) / 10 if name == "memory" else has
        settings.append(f"--set {entry}.{names.get(name, f'custom.{name}')}={value:g}")
    return f"cohobate run {' '.join(settings)}, or add a node"


def _check_engines(
    address: str,
    engines: Engines,
    own: Resources,
    nodes: Sequence[Mapping[str, float]],
    entry: str,
) -> None:
    """Refuse copies of a model that there are no GPUs for."""
    if not engines.are_actors:
        # in the stage's own process, which sees the GPUs that it asks Ray for
        if own.gpus < engines.gpus:
            raise UserError(
                f"{engines.key} of {address} takes {engines.gpus:g} GPUs, and the stage asks Ray "
                f"for {own.gpus:g}",
                where=f"params.yaml, {entry}",
                fix=f"cohobate run --set '{entry}={{gpus: {engines.gpus:g}}}', or {engines.key} of "
                "type transformers",
            )
        return
    free = sum(node.get("GPU", 0) for node in nodes) - own.gpus
    if free < engines.count * engines.gpus:
        fewer = int(free / engines.gpus)
        change = f"--set {engines.count_key}={fewer}, or add nodes"
        raise UserError(
            f"{engines.key} of {address} starts {engines.count} copies of a model with "
            f"{engines.gpus:g} GPUs each, and the cluster has {max(0.0, free):g} GPUs for them",
            where=f"params.yaml, {engines.key}",
            fix=f"cohobate run {change}" if fewer else "add nodes with GPUs, or type: transformers",
        )


def _has_labels(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Say whether a node has the labels; Ray's operators (`in(a,b)`, `!a`) are left to Ray."""
    plain = {key: value for key, value in labels.items() if value.isidentifier()}
    return bool(plain.items() <= node.get("Labels", {}).items())


def _check_workers(
    address: str, count: int, own: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> None:
    """Refuse more workers than the cluster has slots for, beside the stage that starts them."""
    # as Ray Train places them: a GPU each where there is any, else a CPU slot
    kind = "GPU" if any(node.get("GPU", 0) for node in nodes) else "CPU"
    slots = int(sum(int(node.get(kind, 0)) for node in nodes) - own.get(kind, 0))
    if slots < count:
        key = address.replace("@", ".", 1)
        fewer = max((n for n in range(1, slots + 1) if count % n == 0), default=1)
        raise UserError(
            f"{address} starts {count} workers, and the cluster has {max(0, slots)} {kind} slots "
            "for them",
            where=f"params.yaml, {key}.workers",
            fix=f"cohobate run --set {key}.workers={fewer}, or add nodes",
        )
