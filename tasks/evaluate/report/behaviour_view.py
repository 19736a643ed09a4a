"""What the report shows beside the score: robustness, forgetting, cost, router, mistakes."""

from typing import Any

from cohobate.evaluation import number_text
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
    """Return each model's loss on general text, as a bar, in the order of the arms."""
    found = []
    for arm in arms:
        losses = [line["bits_per_byte"] for line in table if line["arm"] == arm["arm"]]
        if losses:
            mean = sum(losses) / len(losses)
            found.append({"label": arm["label"], "tone": arm["tone"], "bits_per_byte": mean})
    most = max((line["bits_per_byte"] for line in found), default=1.0)
    return [line | {"width": round(100 * line["bits_per_byte"] / most, 2)} for line in found]


def cost(worked_out: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the costs in words, and two lines that cross where distillation has paid."""
    if worked_out is None:
        return None
    million, even = worked_out["cost_per_million_tokens"], worked_out["break_even_tokens"]
    far = 2.5 * even if even else 1e6
    x = Scale(0.0, far, far / 4)
    ends = {"student": (worked_out["cost"], worked_out["cost"] + million["student"] * far / 1e6)}
    if million["teacher"] is not None:
        ends |= {"teacher": (0.0, million["teacher"] * far / 1e6)}
    y = Scale.around([0.0, *(end for both in ends.values() for end in both)], wanted=4)
    return worked_out | {
        "lines": {
            role: polyline([(0.0, first), (far, last)], x, y)
            for role, (first, last) in ends.items()
        },
        "even_at": x.at(even) if even else None,
        "x_ticks": [(25 * n, number_text.short(n * far / 4) if n else "0") for n in range(5)],
        "y_ticks": [(y.at(tick), f"{tick:.3g}") for tick in y.ticks],
    }


def router(curve: Table, judged: dict[str, Any] | None, teacher: float) -> dict[str, Any] | None:
    """Return the curve of score by the student's share of traffic, and the floor."""
    if judged is None or not curve:
        return None
    floor = judged["floor"] * teacher
    x = Scale(0.0, 1.0, 0.25)
    y = Scale.around([floor, teacher, *(point["score"] for point in curve)], wanted=4)
    return judged | {
        "line": polyline([(point["share"], point["score"]) for point in curve], x, y),
        "floor_at": y.at(floor),
        "floor_score": floor,
        "here": (x.at(judged["share"]), y.at(judged["score"])),
        "x_ticks": [(100 * tick, f"{100 * tick:g} %") for tick in x.ticks],
        "y_ticks": [(y.at(tick), f"{100 * tick:g}") for tick in y.ticks],
    }


def mistakes(files: RoundFiles) -> Table:
    """Return the clusters of mistakes, each with some of its rows and their nearest lessons."""
    clusters = files.clusters
    quoted = {row: None for cluster in clusters for row in cluster["examples"]}
    rows = {row["id"]: row for row in files.errors if row["id"] in quoted}
    wanted = {near["id"] for row in rows.values() for near in row["nearest"][:1]}
    lessons = {row["id"]: row for row in files.lessons if row["id"] in wanted}
    total = sum(cluster["rows"] for cluster in clusters) or 1
    return [
        cluster
        | {
            "share": cluster["rows"] / total,
            "quoted": [
                rows[n]
                | {"prompt": prompt_text(rows[n]["prompt"])}
                | {"near": [_near(near, lessons) for near in rows[n]["nearest"][:1]]}
                for n in cluster["examples"]
                if n in rows
            ],
        }
        for cluster in clusters
    ]


def difficulty(lessons: Table) -> dict[str, Any] | None:
    """Return mean difficulty by position in the curriculum; None without lessons."""
    if not lessons:
        return None
    curve = [{"step": n, "loss": lesson["difficulty"]} for n, lesson in enumerate(lessons)]
    points = thinned(curve)
    x = Scale.around([0.0, float(len(curve))], wanted=4, tight=True)
    y = Scale.around([0.0, *(value for _, value in points)], wanted=4)
    stages = [lesson["stage"] for lesson in lessons]
    return {
        "line": polyline(points, x, y),
        "turns": [x.at(n) for n in range(1, len(stages)) if stages[n] != stages[n - 1]],
        "x_ticks": [(x.at(tick), number_text.count(tick)) for tick in x.ticks],
        "y_ticks": [(y.at(tick), f"{tick:g}") for tick in y.ticks],
    }


def prompt_text(prompt: Any) -> str:
    """Return a prompt as it is quoted: a conversation with the roles of its turns."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _near(near: dict[str, Any], lessons: dict[str, Any]) -> dict[str, Any]:
    lesson = lessons.get(near["id"])
    if lesson is None:
        return near | {"prompt": near["id"], "answer": ""}
    return near | {"prompt": prompt_text(lesson["prompt"]), "answer": lesson["answer"]}


def _points(tick: float) -> str:
    return f"{100 * tick:g}".replace("-", number_text.MINUS)
