"""Scores by task in the report, where the round has several sources."""

from typing import Any

from cohobate.evaluation import number_text
from tasks.evaluate.report.round_files import Table
from tasks.evaluate.task_scores import MACRO_MEAN


def tasks(tasks: Table, metrics: dict[str, Any], by_role: dict[str, Any]) -> Table:
    """Return a line for each task: every role's score, the student's gain, and the gate.

    None of a round with one source: a file of an earlier round must not stay in the report.
    """
    passed = metrics["gate"].get("each_task", {}).get("passed", {})
    lines = []
    for line in tasks if "tasks" in metrics else []:
        figures = {role: line["arms"][arm["arm"]] for role, arm in by_role.items()}
        lines.append(
            {
                "task": line["task"],
                "rows": line["rows"],
                "score": {role: of["score"] for role, of in figures.items()},
                "gain": figures["student"]["gain_over_baseline"],
                "retention": figures["student"]["retention"],
                "macro": line["task"] == MACRO_MEAN,
                "passed": passed.get(line["task"]),
            }
        )
    return lines


def condition(each: dict[str, Any]) -> dict[str, Any]:
    """Return the condition of the gate that every task has to meet by itself."""
    passed, kept = each["passed"], number_text.points(each["min_retention"])
    required = f"gain above {number_text.points(each['min_gain'])}"
    return {
        "met": bool(passed) and all(passed.values()),
        "name": "every task",
        "required": required + (f", retention at least {kept} %" if each["min_retention"] else ""),
        "value": f"{sum(passed.values())} of {len(passed)}",
    }
