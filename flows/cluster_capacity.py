"""What a Ray cluster can hold: stages that fit on no node, workers that find no slot."""

from collections.abc import Mapping, Sequence
from typing import Any

from cohobate.errors import UserError
from flows.resources import Resources


def as_ray_counts(resources: Resources) -> dict[str, float]:
    """Return the resources of a stage under Ray's names."""
    counts = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    counts["memory"] = resources.memory_gb * 2**30
    return {name: count for name, count in counts.items() if count}


def check(
    alive: Sequence[Mapping[str, Any]], needs: Mapping[str, Resources], workers: Mapping[str, int]
) -> None:
    """Refuse a round with a stage that fits on no node, which Ray would let wait forever.

    Args:
        alive: the nodes of the cluster, as `ray.nodes()` has them.
        needs: resources of each stage.
        workers: processes that a stage starts beside itself, for those that start several.

    Raises:
        UserError: names the stage and its resources, or how many workers would fit.
    """
    for address, resources in needs.items():
        counts = as_ray_counts(resources)
        nodes = [node["Resources"] for node in alive if _has_labels(node, resources.labels)]
        where = f"params.yaml, resources.{address.partition('@')[0]}"
        # all on one node: Ray does not split a task over nodes
        if not any(all(node.get(k, 0) >= v for k, v in counts.items()) for node in nodes):
            labels = f" with the labels {resources.labels}" if resources.labels else ""
            raise UserError(
                f"no node of the cluster{labels} has the resources of {address}: {counts}",
                where=where,
                fix="lower them, or add a node; ray status shows the nodes",
            )
        if count := workers.get(address):
            _check_workers(address, count, counts, nodes)


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
