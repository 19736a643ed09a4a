"""Procedural reasoning tasks: as many as are asked for, each with its right answer.

From reasoning-gym (Stojanovski et al. 2025, Apache-2.0), an optional dependency.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from tasks.collect.examples import Example, SetAside


class ReasoningGym(Section):
    """Tasks by name and level; columns `question`, `answer`, `task` and `level`."""

    type: Literal["reasoning_gym"]
    path: Literal["tasks/collect/reasoning.py"] = "tasks/collect/reasoning.py"
    """What DVC watches in place of a file."""
    tasks: dict[str, int] = Field(min_length=1)
    """The level of each task, from 0, such as `{chain_sum: 1, leg_counting: 0}`."""
    rows: int = Field(ge=1)
    """Problems of each task."""
    seed: int = Field(0, ge=0)
    group: Literal["task", "level"] = "task"
    """Column that makes the group."""

    @property
    def file(self) -> str:
        """Name of what the numbers of records count in."""
        return "reasoning-gym"

    def release(self) -> str:
        """Return what the summary says of the source."""
        from importlib.metadata import version

        return f"reasoning-gym {version('reasoning-gym')}"

    @property
    def licence(self) -> str:
        """Terms on which the problems may be used: those of the package that makes them."""
        return "Apache-2.0"

    def notice(self) -> str:
        """Return the licence notice that the rows carry along: problems made here need none."""
        return ""

    def examples(self) -> Iterator[Example | SetAside]:
        """Yield the problems, task after task.

        Raises:
            UserError: reasoning-gym is not installed, or has no such task or level.
        """
        number = 0
        for name, level in self.tasks.items():
            for entry in _problems(name, level, self.rows, self.seed):
                number += 1
                told = {"question": entry["question"], "answer": entry["answer"]}
                columns = told | {"task": name, "level": f"{name} {level}"}
                yield Example(number, columns, group=columns[self.group])


def _problems(name: str, level: int, rows: int, seed: int) -> Any:
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import create_curriculum
    except ImportError as error:
        raise UserError(
            "reasoning-gym is not installed",
            where="collect.source",
            fix="pip install 'cohobate[reasoning]'",
        ) from error
    wanted = {"size": rows, "seed": seed}
    try:
        curriculum = create_curriculum(name)
        highest = max(len(knob.levels) for knob in curriculum.attributes.values()) - 1
        if not 0 <= level <= highest:
            raise ValueError(f"its levels go from 0 to {highest}")
        curriculum.set_global_level(level)
        told = vars(curriculum.generate_configuration(wanted))
        return create_dataset(name, **(told | wanted))
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"no such problems: {error}", where=f"collect.source.tasks: {name}, level {level}"
        ) from error
