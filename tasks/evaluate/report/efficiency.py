"""Size and speed in the report: figures of teacher and student side by side."""

from collections.abc import Callable
from typing import Any

from cohobate.evaluation import number_text
from tasks.evaluate.report.round_files import Table


def pairs(by_role: dict[str, Any], timings: dict[str, Any] | None) -> Table:
    """Return pairs of figures of teacher and student, with their ratio."""
    large, small = by_role["teacher"]["footprint"], by_role["student"]["footprint"]
    counted = [
        _pair("Parameters", large, small, "parameters", number_text.short),
        _pair("without embeddings", large, small, "non_embedding_parameters", number_text.short),
        _pair("Weights on disk", large, small, "bytes", number_text.size),
        _pair("FLOPs per token", large, small, "flops_per_token", number_text.short),
    ]
    if timings is None:
        return counted
    slow, fast = timings["models"].get("teacher"), timings["models"]["student"]
    latency, memory = number_text.milliseconds, number_text.size
    timed = [
        _pair("Latency, median", slow, fast, "latency_ms_p50", latency),
        _pair("Latency, 95th percentile", slow, fast, "latency_ms_p95", latency),
        _pair("Peak memory", slow, fast, "peak_memory_bytes", memory),
        _pair("Tokens per second", slow, fast, "tokens_per_second", number_text.short, more=True),
    ]
    if each := timings.get("energy", {}).get("joules_per_token"):
        used = [{"joules": each[role]} if role in each else None for role in ("teacher", "student")]
        timed.append(
            _pair("Energy of a token", used[0], used[1] or {}, "joules", number_text.joules)
        )
    if speed := timings.get("draft", {}).get("tokens_per_second"):
        accepted = timings["draft"]["acceptance"] or 0.0
        name = f"Tokens per second, teacher alone → student drafting, {accepted:.0%} accepted"
        alone, pair = ({"speed": speed[which]} for which in ("teacher", "pair"))
        timed.append(_pair(name, alone, pair, "speed", number_text.short, more=True))
    return counted + [pair | {"timed": True} for pair in timed]


def _pair(
    name: str,
    teacher: dict[str, Any] | None,
    student: dict[str, Any],
    key: str,
    write: Callable[[float], str],
    *,
    more: bool = False,
) -> dict[str, Any]:
    """Return one figure of both models; `more`: a higher figure is better."""
    other = student[key]
    if teacher is None:
        unknown = {"teacher": "–", "teacher_width": 0.0, "ratio": number_text.times(None)}
        known = {"student": write(other), "student_width": 100.0}
        return {"name": name, **unknown, **known, "better": "", "timed": False}
    one = teacher[key]
    most = max(one, other) or 1
    above, below = (other, one) if more else (one, other)
    return {
        "name": name,
        "teacher": write(one),
        "student": write(other),
        "teacher_width": round(100 * one / most, 2),
        "student_width": round(100 * other / most, 2),
        "ratio": number_text.times(above / below if below else None),
        "better": ("more" if more else "less") if below else "",
        "timed": False,
    }
