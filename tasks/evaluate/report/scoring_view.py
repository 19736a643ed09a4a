"""Verdicts of judges in the report."""

from typing import Any

from tasks.evaluate.report.round_files import Table

_ORDER = ("won", "lost", "tie", "inconsistent", "identical", "rated", "no verdict")


def judged(record: dict[str, Any], metrics: list[dict[str, Any]]) -> Table:
    """Return a table of outcomes for each metric by a judge.

    Args:
        record: the content of data/evaluate/judged.json.
        metrics: `evaluate.metrics` of params.yaml.
    """
    tables = []
    for place, figures in record.items():
        position, _, rest = place.removeprefix("evaluate.metrics.").partition(".")
        number = position.partition(",")[0]
        named = metrics[int(number)] if number.isdigit() and int(number) < len(metrics) else {}
        task = rest.removeprefix("metrics.").partition(",")[0]
        counts = figures["models"]
        outcomes = [name for name in _ORDER if any(name in own for own in counts.values())]
        cost = {key: figures.get(key) for key in ("prompt_tokens", "completion_tokens", "cost_usd")}
        tables.append(
            {
                "metric": f"{named.get('type', place)}{f' of {task}' if task else ''}",
                "judge": figures["judge"],
                "other": place.endswith("other prompts"),
                "outcomes": outcomes,
                "models": [*counts.items()],
                "replies": figures["replies"],
                **cost,
            }
        )
    return tables
