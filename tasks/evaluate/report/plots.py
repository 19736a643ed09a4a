"""Charts of the report: figures as positions in percent of a side."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cohobate.evaluation import number_text
from cohobate.evaluation.score_text import ScoreText
from tasks.evaluate.report.charts import Scale, boundaries, polyline, thinned
from tasks.evaluate.report.round_files import DevCheck, Table

_ORDERS = 50
"""From this ratio of the largest to the smallest on, a linear axis would show one of them alone."""
FIRST = 0.05
"""Share of the first updates whose loss can lie above the panel: it would flatten the rest."""


def scores(arms: Table, text: ScoreText) -> dict[str, Any]:
    """Return each arm's score and interval on one axis, with the teacher's as a mark."""
    ends = [arm["score"][end] for arm in arms for end in ("low", "high")]
    axis = _axis(ends, text)
    return {
        "ticks": axis.ticks,
        "teacher": axis.at(next(a["score"]["mean"] for a in arms if a["role"] == "teacher")),
        "rows": [
            {
                "arm": arm,
                **{end: axis.at(arm["score"][end]) for end in ("mean", "low", "high")},
                "seeds": [axis.at(s) for s in arm["by_seed"].values()] if _several(arm) else [],
            }
            for arm in arms
        ],
    }


class _Axis(NamedTuple):
    ticks: list[tuple[float, str]]
    at: Callable[[float], float]


def _axis(ends: Sequence[float], text: ScoreText) -> _Axis:
    """Return the axis of the scores; logarithmic where perplexities are orders apart."""
    if text.lower_is_better and max(ends) > _ORDERS * min(ends) > 0:
        logs = Scale.around([math.log10(end) for end in ends])
        powers = range(math.ceil(logs.low), math.floor(logs.high) + 1)
        ticks = [(logs.at(power), number_text.count(10**power)) for power in powers]
        return _Axis(ticks, lambda score: logs.at(math.log10(score)))
    if text.lower_is_better:
        scale, factor = Scale.around(ends), 1
    else:
        scale, factor = Scale.around([0.0, 1.0] if max(ends) - min(ends) > 0.6 else ends), 100
    return _Axis([(scale.at(tick), f"{factor * tick:g}") for tick in scale.ticks], scale.at)


def _several(arm: dict[str, Any]) -> bool:
    return len(arm["by_seed"]) > 1


def gain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the gain over the baseline and its interval on an axis that shows zero."""
    gain = metrics["gain_over_baseline"]
    ends = [0.0, gain["low"], gain["high"], metrics["gate"]["min_gain"]]
    scale = Scale.around(ends if any(ends) else [-0.01, 0.01])
    return {
        "ticks": [(scale.at(tick), _points(tick)) for tick in scale.ticks],
        "zero": scale.at(0.0),
        **{end: scale.at(gain[end]) for end in ("mean", "low", "high")},
    }


def losses(
    losses: dict[str, dict[int, Table]],
    dev: dict[str, dict[int, list[DevCheck]]],
    arms: Table,
) -> Table:
    """Return a panel of loss curves for each phase, in the order of the arms.

    `dev`: the checks on dev rows of the phases that have any; their curve has an axis of its own.
    """
    tones = {arm["arm"]: (arm["label"], arm["tone"]) for arm in arms}
    panels = []
    for phase in sorted(losses, key=lambda name: list(tones).index(name) if name in tones else 99):
        seeds = losses[phase]
        curves = {seed: thinned(curve) for seed, curve in seeds.items()}
        points = [point for curve in curves.values() for point in curve]
        x = Scale.around([0.0, *(step for step, _ in points)], ticks=4, tight=True)
        y = Scale.around([loss for step, loss in points if step > FIRST * x.high], ticks=4)
        last = {seed: curve[-1][1] for seed, curve in curves.items()}
        panels.append(
            {
                "phase": phase,
                "label": tones.get(phase, (phase, "other"))[0],
                "tone": tones.get(phase, (phase, "other"))[1],
                "lines": [polyline(curve, x, y) for curve in curves.values()],
                "x_ticks": [(x.at(tick), number_text.count(tick)) for tick in x.ticks],
                "y_ticks": [(y.at(tick), f"{tick:g}") for tick in y.ticks],
                "cut": any(loss > y.high for _, loss in points),
                "stages": [x.at(step) for step in boundaries(next(iter(seeds.values())))],
                "steps": number_text.count(max(step["step"] for c in seeds.values() for step in c)),
                "last": ", ".join(f"{loss:.3f}" for loss in last.values()),
                "seeds": len(seeds),
                "dev": _dev_curves(dev.get(phase, {}), x),
            }
        )
    return panels


def _dev_curves(seeds: dict[int, list[DevCheck]], x: Scale) -> dict[str, Any] | None:
    """Return the figure on dev rows at each check: its lines, its range and its last values."""
    curves = [
        [(float(one.update), one.value) for one in checks if math.isfinite(one.value)]
        for checks in seeds.values()
    ]
    values = [value for curve in curves for _, value in curve]
    if not values:
        return None
    y = Scale.around(values, ticks=4)
    return {
        "name": "score" if any(one.is_score for c in seeds.values() for one in c) else "loss",
        "lines": [polyline(curve, x, y) for curve in curves],
        "low": f"{min(values):.3g}",
        "high": f"{max(values):.3g}",
        "last": ", ".join(f"{curve[-1][1]:.3f}" for curve in curves if curve),
    }


def funnel(funnel: Table) -> Table:
    """Return what each filter kept and dropped, as shares of what came in."""
    first = funnel[0]["seen"] if funnel else 0
    return [
        step
        | {
            "kept": step["seen"] - step["dropped"],
            "kept_width": round(100 * (step["seen"] - step["dropped"]) / max(first, 1), 2),
            "dropped_width": round(100 * step["dropped"] / max(first, 1), 2),
            "reasons": sorted(step["reasons"].items(), key=lambda item: (-item[1], item[0])),
        }
        for step in funnel
    ]


def curriculum(stages: Table) -> Table:
    """Return the stages of the curriculum, with their rows and span of difficulty."""
    if not stages:
        return []
    scale = Scale.around([stage[end] for stage in stages for end in ("low", "high")])
    most = max(stage["rows"] for stage in stages)
    return [
        stage
        | {"width": round(100 * stage["rows"] / most, 2)}
        | {f"{end}_at": scale.at(stage[end]) for end in ("low", "mean", "high")}
        for stage in stages
    ]


def reliability(bins: Table, arms: Table) -> Table:
    """Return the score at each level of confidence, for teacher and student."""
    tones = {arm["arm"]: (arm["label"], arm["tone"]) for arm in arms}
    most = max((line["rows"] for line in bins), default=1)
    return [
        {
            "label": tones[line["arm"]][0],
            "tone": tones[line["arm"]][1],
            "x": round(100 * line["confidence"], 2),
            "y": round(100 * line["score"], 2),
            "size": round(4 + 8 * (line["rows"] / most) ** 0.5, 1),
            "rows": int(line["rows"]),
        }
        for line in bins
        if line["arm"] in tones
    ]


def _points(tick: float) -> str:
    return f"{100 * tick:+g}".replace("-", number_text.MINUS) if tick else "0"
