"""Procedural reasoning problems, generated with their right answers.

By reasoning-gym (Stojanovski et al. 2025, Apache-2.0), an optional dependency.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from tasks.collect.source_records import QuarantinedRecord, SourceRecord

_TERM = re.compile(r"([-+]?)\s*(\d+)")


class ReasoningGym(Section):
    """Tasks by name and level; columns `question`, `answer`, `task` and `level`.

    Problems of `chain_sum` have a column `steps` too: their partial sums, one a line.
    """

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
        """Name that stands for the file in messages."""
        return "reasoning-gym"

    def release(self) -> str:
        """Return the name of the data for the summary."""
        from importlib.metadata import version

        return f"reasoning-gym {version('reasoning-gym')}"

    @property
    def licence(self) -> str:
        """Licence of the problems: that of the package that generates them."""
        return "Apache-2.0"

    def notice(self) -> str:
        """Return the licence notice to write beside the rows: none is needed."""
        return ""

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the problems, task after task.

        Raises:
            UserError: reasoning-gym is not installed, or has no such task or level.
        """
        number = 0
        for name, level in self.tasks.items():
            for entry in _problems(name, level, self.rows, self.seed):
                number += 1
                pair = {"question": entry["question"], "answer": entry["answer"]}
                columns = pair | {"task": name, "level": f"{name} {level}"}
                if name == "chain_sum":
                    columns["steps"] = worked_steps(entry["metadata"]["expression"])
                yield SourceRecord(number, columns, group=columns[self.group])


def worked_steps(expression: str) -> str:
    """Return the partial sums of `4 - 1 + 12`, one a line."""
    terms = [(sign or "+", int(digits)) for sign, digits in _TERM.findall(expression)]
    total, lines = terms[0][1], []
    for sign, term in terms[1:]:
        after = total + term if sign == "+" else total - term
        lines.append(f"{total} {sign} {term} = {after}")
        total = after
    return "\n".join(lines)


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
    options = {"size": rows, "seed": seed}
    try:
        curriculum = create_curriculum(name)
        highest = max(len(knob.levels) for knob in curriculum.attributes.values()) - 1
        if not 0 <= level <= highest:
            raise ValueError(f"levels are 0 to {highest}")
        curriculum.set_global_level(level)
        configuration = vars(curriculum.generate_configuration(options))
        return create_dataset(name, **(configuration | options))
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"cannot generate the problems: {error}",
            where=f"collect.source.tasks: {name}, level {level}",
            fix="name a task of reasoning-gym, with one of its levels",
        ) from error
