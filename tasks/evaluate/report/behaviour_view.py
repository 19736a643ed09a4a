"""Content of the report beside the score: robustness, forgetting, cost, router, mistakes."""

from collections.abc import Mapping
from typing import Any

from cohobate.evaluation import number_text
from tasks.evaluate.report import pictures
from tasks.evaluate.report.charts import Scale, polyline, thinned
from tasks.evaluate.report.round_files import RoundFiles, Table
from tasks.evaluate.robustness import PERTURBED_ROLES

ROLES = ("teacher", "student")


def robustness(table: Table) -> dict[str, Any] | None:
    """Return, for each kind of prompt, both models' drops on one axis; None without any."""
    if not table:
        return None
    ends = [line["drop"][r][end] for line in table for r in ROLES for end in ("low", "high")]
    scale = Scale.around([0.0, *ends])
    return {
        "zero": scale.at(0.0),
        "ticks": [(scale.at(tick), _points(tick)) for tick in scale.ticks],
        "roles": [role for role in PERTURBED_ROLES if role in table[0]["score"]],
        "rows": [
            line | {"at": {r: {e: scale.at(x) for e, x in line["drop"][r].items()} for r in ROLES}}
            for line in table
        ],
    }


def forgetting(table: Table, arms: Table) -> Table:
    """Return each model's loss on general text, as bars in the order of the arms."""
    bars = []
    for arm in arms:
        losses = [line["bits_per_byte"] for line in table if line["arm"] == arm["arm"]]
        if losses:
            mean = sum(losses) / len(losses)
            bars.append({"label": arm["label"], "tone": arm["tone"], "bits_per_byte": mean})
    most = max((line["bits_per_byte"] for line in bars), default=1.0)
    return [line | {"width": round(100 * line["bits_per_byte"] / most, 2)} for line in bars]


def cost(cost_record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the costs, and the two cost lines that cross at break-even."""
    if cost_record is None:
        return None
    million, even = cost_record["cost_per_million_tokens"], cost_record["break_even_tokens"]
    far = 2.5 * even if even else 1e6
    x = Scale(0.0, far, far / 4)
    ends = {"student": (cost_record["cost"], cost_record["cost"] + million["student"] * far / 1e6)}
    if million["teacher"] is not None:
        ends |= {"teacher": (0.0, million["teacher"] * far / 1e6)}
    y = Scale.around([0.0, *(end for both in ends.values() for end in both)], ticks=4)
    return cost_record | {
        "lines": {
            role: polyline([(0.0, first), (far, last)], x, y)
            for role, (first, last) in ends.items()
        },
        "even_at": x.at(even) if even else None,
        "x_ticks": [(25 * n, number_text.short(n * far / 4) if n else "0") for n in range(5)],
        "y_ticks": [(y.at(tick), f"{tick:.3g}") for tick in y.ticks],
    }


def router(curve: Table, results: dict[str, Any] | None, teacher: float) -> dict[str, Any] | None:
    """Return the curve of score by the student's share of traffic, and the floor."""
    if results is None or not curve:
        return None
    floor = results["floor"] * teacher
    x = Scale(0.0, 1.0, 0.25)
    y = Scale.around([floor, teacher, *(point["score"] for point in curve)], ticks=4)
    return results | {
        "line": polyline([(point["share"], point["score"]) for point in curve], x, y),
        "floor_at": y.at(floor),
        "floor_score": floor,
        "here": (x.at(results["share"]), y.at(results["score"])),
        "x_ticks": [(100 * tick, f"{100 * tick:g} %") for tick in x.ticks],
        "y_ticks": [(y.at(tick), f"{100 * tick:g}") for tick in y.ticks],
    }


def mistakes(files: RoundFiles) -> Table:
    """Return the clusters of mistakes, each with sample rows and their nearest training rows."""
    clusters = files.clusters
    quoted = {row: None for cluster in clusters for row in cluster["examples"]}
    rows = {row["id"]: row for row in files.errors if row["id"] in quoted}
    near_ids = {near["id"] for row in rows.values() for near in row["nearest"][:1]}
    training_rows = {row["id"]: row for row in files.training_rows if row["id"] in near_ids}
    total = sum(cluster["rows"] for cluster in clusters) or 1
    return [
        cluster
        | {
            "share": cluster["rows"] / total,
            "quoted": [
                rows[n]
                | _asked(files, rows[n])
                | {"near": [_near(files, near, training_rows) for near in rows[n]["nearest"][:1]]}
                for n in cluster["examples"]
                if n in rows
            ],
        }
        for cluster in clusters
    ]


def difficulty(training_rows: Table) -> dict[str, Any] | None:
    """Return mean difficulty by position in the curriculum; None without training_rows."""
    if not training_rows:
        return None
    curve = [{"step": n, "loss": row["difficulty"]} for n, row in enumerate(training_rows)]
    points = thinned(curve)
    x = Scale.around([0.0, float(len(curve))], ticks=4, tight=True)
    y = Scale.around([0.0, *(value for _, value in points)], ticks=4)
    stages = [row["stage"] for row in training_rows]
    return {
        "line": polyline(points, x, y),
        "turns": [x.at(n) for n in range(1, len(stages)) if stages[n] != stages[n - 1]],
        "x_ticks": [(x.at(tick), number_text.count(tick)) for tick in x.ticks],
        "y_ticks": [(y.at(tick), f"{tick:g}") for tick in y.ticks],
    }


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text; a conversation with the roles of its turns."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _near(files: RoundFiles, near: dict[str, Any], training_rows: dict[str, Any]) -> dict[str, Any]:
    row = training_rows.get(near["id"])
    if row is None:
        return near | {"prompt": near["id"], "answer": "", "pictures": []}
    return near | _asked(files, row) | {"answer": row["answer"]}


def _asked(files: RoundFiles, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompt of a row as text, and its pictures with their caption in its place."""
    images = row.get("images") or ()
    asked = row.get("teacher_prompt") if images else None
    return {
        "prompt": prompt_text(asked or row["prompt"]),
        "pictures": pictures.inline(files.root, images),
    }


def _points(tick: float) -> str:
    return f"{100 * tick:g}".replace("-", number_text.MINUS)
