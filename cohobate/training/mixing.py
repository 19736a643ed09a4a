"""Mixing of tasks: at what rate a batch draws rows of each, where a round has several sources.

In proportion to the rows, a large task crowds out a small one; at equal rates, a small task is
repeated so often that it is learnt by heart. Temperature lies between the two.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Annotated, Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section, nearest

Weight = Annotated[float, Field(gt=0)]


class TemperatureMixing(Section):
    """Rates in proportion to rows^(1/T).

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", section 3.5.2, without a limit on the size of a task.
    """

    temperature: float = Field(ge=1)
    """T: 1 is in proportion to the rows; the higher, the more equal the rates."""


class WeightedMixing(Section):
    """Rates in proportion to weights."""

    weights: dict[str, Weight] = Field(min_length=1)
    """Of every task: the names of `collect.sources`."""


Mixing = Literal["proportional", "equal"] | TemperatureMixing | WeightedMixing


def mixing_rates(mixing: Mixing, rows: Mapping[str, int]) -> dict[str, float]:
    """Return the share of the drawn rows that each task has; they add up to 1.

    Args:
        mixing: how tasks are mixed.
        rows: number of rows of each task.

    Raises:
        UserError: the weights name other tasks than the rows have.
    """
    if isinstance(mixing, WeightedMixing):
        shares = {task: mixing.weights.get(task, 0.0) for task in rows}
        if missing := [task for task, share in shares.items() if not share]:
            raise UserError(
                f"mixing gives no weight for the task {missing[0]!r}",
                where="mixing.weights of the phase",
                fix=f"give a weight for each of {', '.join(rows)}",
            )
    elif isinstance(mixing, TemperatureMixing):
        shares = {task: number ** (1 / mixing.temperature) for task, number in rows.items()}
    elif mixing == "equal":
        shares = dict.fromkeys(rows, 1.0)
    else:
        shares = {task: float(number) for task, number in rows.items()}
    total = sum(shares.values())
    return {task: share / total for task, share in shares.items()}


def check_tasks(mixing: Mixing, tasks: set[str]) -> None:
    """Refuse a mixing that the tasks of the rows do not fit.

    Raises:
        UserError: the rows name no task, or the weights name a task that no row has.
    """
    if mixing == "proportional":
        return
    if tasks == {""}:
        raise UserError(
            "the rows name no task: there is nothing to mix",
            where="mixing of the phase",
            fix="give several sources in collect.sources, or mixing: proportional",
        )
    named = set(mixing.weights) if isinstance(mixing, WeightedMixing) else set()
    if unknown := sorted(named - tasks):
        raise UserError(
            f"no row is of the task {unknown[0]!r}{nearest(unknown[0], tasks)}",
            where="mixing.weights of the phase",
            fix=f"name the tasks {', '.join(sorted(tasks))}",
        )


def draw_tasks(rates: Mapping[str, float]) -> Iterator[str]:
    """Yield tasks without end, each as often as its rate says: never off by more than one row."""
    drawn = dict.fromkeys(rates, 0)
    for number in count(1):
        # the task that is furthest behind its rate; of equals the first
        task = max(rates, key=lambda name: rates[name] * number - drawn[name])
        drawn[task] += 1
        yield task
