"""Content of the report, section by section, as plain values for the templates."""

from collections.abc import Mapping
from typing import Any

from cohobate.evaluation import number_text
from cohobate.evaluation.score_text import NO_SHARE, ScoreText
from tasks.evaluate.report import (
    behaviour_view,
    efficiency,
    pictures,
    plots,
    scoring_view,
    task_view,
)
from tasks.evaluate.report.comparison import compared
from tasks.evaluate.report.round_files import RoundFiles, Table

ROLES = {
    "teacher": "Teacher",
    "initial": "Student before distillation",
    "baseline": "Equal-updates baseline",
    "student": "Distilled student",
}
_BASELINE_BEST = {"baseline_best": "Baseline, best on dev"}
KINDS = {
    "won": ("Won by distillation", "the student is right, the baseline is not"),
    "lost": ("Lost by distillation", "the baseline is right, the student is not"),
    "behind": ("Behind the teacher", "its most confident mistakes where the teacher is right"),
    "ahead": ("Ahead of the teacher", "the student is right, the teacher is not"),
    "random": ("Random rows", "a random sample"),
}
ROWS = ("read", "set_aside", "labelled", "unlabelled", "dev", "test")
"""Figures of `collect` in the report."""
STUDENT = ("type", "model", "revision", "licence", "layers", "parameters")
"""Figures of the initial student in the report."""
FEW_ROWS = 30
"""Below this many rows, a group's score is mostly chance."""


def view(files: RoundFiles, against: str = "") -> dict[str, Any]:
    """Return all values that the templates use."""
    metrics, arms = files.metrics, [_named(arm, files) for arm in files.arms]
    text = ScoreText(metrics["metric"])
    cost_record = files.cost
    by_role = {arm["role"]: arm for arm in arms if arm["role"] != "other"}
    return {
        "metrics": metrics,
        "text": text,
        "no_share": NO_SHARE,
        "verdict": verdict(metrics),
        "gate": gate(metrics),
        "arms": arms,
        "tasks": task_view.tasks(files.tasks, metrics, by_role),
        "judged": scoring_view.judged(
            files.judged, (files.params.get("evaluate") or {}).get("metrics") or []
        ),
        "capabilities": files.capabilities,
        "gaps": files.gaps,
        "by_role": by_role,
        "unequal": unequal_updates(by_role),
        "scores": plots.scores(arms, text),
        "gain": plots.gain(metrics),
        "efficiency": efficiency.pairs(by_role, files.timings),
        "timings": files.timings,
        "losses": plots.losses(files.losses, files.dev, arms),
        "collected": _chosen(files.collected, ROWS),
        "funnel": plots.funnel(files.funnel),
        "curriculum": plots.curriculum(files.curriculum),
        # a group's gap is shown in points of a score
        "groups": [] if text.lower_is_better else _groups(files.groups),
        "reliability": plots.reliability(files.reliability, arms),
        "samples": _samples(files, arms) if files.samples else [],
        "roles": ROLES,
        "robustness": behaviour_view.robustness(files.robustness),
        "forgetting": behaviour_view.forgetting(files.forgetting, arms),
        "memorisation": files.memorisation,
        "cost_record": cost_record,
        "cost": behaviour_view.cost(cost_record),
        "router": behaviour_view.router(*files.router, by_role["teacher"]["score"]["mean"]),
        "mistakes": behaviour_view.mistakes(files),
        "difficulty": behaviour_view.difficulty(files.training_rows),
        "against": against and {"name": against, "lines": compared(files.root, metrics, against)},
        "models": files.models,
        "student_start": _chosen(files.models.get("student", {}), STUDENT),
        "outputs": files.outputs,
        "params_digest": files.params_digest,
        "summaries": files.summaries,
        "stage_seconds": _stage_seconds(files.stage_seconds),
        "commit": files.commit,
        "not_measured": not_measured(metrics, by_role, files),
    }


def verdict(metrics: dict[str, Any]) -> dict[str, str]:
    """Return the verdict as one sentence, in parts around its figures."""
    gain = metrics["gain_over_baseline"]
    tone, before, after = {
        "yes": ("good", "Distillation beats the equal-updates baseline by", "."),
        "no": ("bad", "Distillation falls behind the equal-updates baseline:", "."),
        "within noise": ("unsure", "Over the equal-updates baseline:", ", within noise."),
    }[metrics["verdict"]]
    mean, low, high = (number_text.signed(gain[end]) for end in ("mean", "low", "high"))
    if tone == "good":
        mean, low, high = (text.removeprefix("+") for text in (mean, low, high))
    interval = f"[{low}, {high}]"
    return {"tone": tone, "before": before, "gain": mean, "interval": interval, "after": after}


def gate(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions of the gate, and whether each is met."""
    conditions, gain = metrics["gate"], metrics["gain_over_baseline"]
    retention = metrics["retention"]
    each = conditions.get("each_task")
    return [
        {
            "met": conditions["gain"],
            "name": "lower end of the gain",
            "required": f"more than {number_text.points(conditions['min_gain'])}",
            "value": number_text.signed(gain["low"]),
        },
        *([_over_best(metrics)] if "gain_over_best" in conditions else []),
        {
            "met": conditions["retention"],
            "name": "retention",
            "required": f"at least {number_text.points(conditions['min_retention'])} %",
            "value": "unknown" if retention is None else f"{number_text.points(retention)} %",
        },
        *([task_view.condition(each)] if each else []),
    ]


def _over_best(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the condition on the gain over the baseline's best checkpoint on dev."""
    return {
        "met": metrics["gate"]["gain_over_best"],
        "name": "lower end of the gain over the baseline's best on dev",
        "required": f"more than {number_text.points(metrics['gate']['min_gain'])}",
        "value": number_text.signed(metrics["gain_over_baseline_best"]["low"]),
    }


def unequal_updates(by_role: dict[str, Any]) -> dict[str, int] | None:
    """Return the updates of baseline and student where they differ, else None."""
    updates = {role: by_role[role].get("updates") for role in ("baseline", "student")}
    return updates if len(set(updates.values())) > 1 else None


def not_measured(metrics: dict[str, Any], by_role: dict[str, Any], files: RoundFiles) -> list[str]:
    """Return notes on what was not measured."""
    student = by_role["student"]
    notes = []
    if metrics["seeds"] == 1:
        notes.append(
            "Variation between training runs: there is one seed, and the intervals cover the "
            "choice of test rows alone. `seeds: [1, 2, 3]` in params.yaml measures it."
        )
    elif metrics["seeds"] < 5:
        notes.append(
            f"Rare training runs: {metrics['seeds']} seeds say little about the tail. The "
            "intervals account for it (Student's t), and are wide."
        )
    notes.append("Variation from tuning the teacher: it was tuned once, with one seed.")
    if by_role["teacher"]["footprint"] is None:
        notes.append(
            "The teacher, except for its answers: its weights are not available. So there are no "
            "parameters, bytes, FLOPs, latency, memory, perplexity or loss on general text of it, "
            "no ratios to these, and no divergence from its token distributions."
        )
    elif student["fidelity"] is None:
        notes.append(
            "Divergence from the teacher's token distributions: vocabularies differ, or a model "
            "has none."
        )
    if student["calibration_error"] is None:
        notes.append("Calibration: the answers have no confidence.")
    if len(files.curriculum) > 1:
        notes.append(
            "The effect of the curriculum, unless another phase had the same data shuffled."
        )
    if files.timings is None:
        notes.append("Latency, throughput and memory: reports/timings.json does not exist.")
    kinds = [line["variant"] for line in files.robustness]
    if ScoreText(metrics["metric"]).lower_is_better:
        notes.append(f"Generated answers: {metrics['metric']} decides, of the given texts.")
    elif len(kinds) < 2:
        notes.append("Robustness: `evaluate.robustness.perturbations` is empty.")
    if "out of distribution" not in kinds:
        notes.append("Out-of-distribution rows: data/collect/ood.jsonl does not exist.")
    if not files.memorisation.get("by_role", {}).get("student", {}).get("long_enough"):
        notes.append("Verbatim memorisation: no answer is long enough to be a copy.")
    if files.cost is None:
        notes.append("Cost: reports/stages.json, which `cohobate run` writes, does not exist.")
    return [
        *notes,
        "Forgetting of the teacher in tuning: the teacher before tuning is not evaluated.",
        *_energy_not_known(files.timings),
        *_draft_not_measured(files.timings),
        "Harm, bias against people, and privacy of the training text.",
    ]


def _energy_not_known(timings: dict[str, Any] | None) -> list[str]:
    """Return the note on energy: of the round always, of a token where there is no meter."""
    energy = (timings or {}).get("energy", {})
    price = "It is covered by the price of a machine hour."
    if "joules_per_token" in energy:
        return [f"Energy of the whole round: it was measured for generated tokens only. {price}"]
    return [f"Energy: {energy.get('why_not', 'it was not measured')}. {price}"]


def _draft_not_measured(timings: dict[str, Any] | None) -> list[str]:
    why = (timings or {}).get("draft", {}).get("why_not")
    return [f"The student as a draft of its teacher: {why}."] if why else []


def _named(arm: dict[str, Any], files: RoundFiles) -> dict[str, Any]:
    label = (ROLES | _BASELINE_BEST).get(arm["role"], arm["arm"])
    tone = "baseline" if arm["role"] in _BASELINE_BEST else arm["role"]
    detail = arm["arm"] if arm["role"] in ("baseline", "student") else ""
    seconds = training_seconds(arm["arm"], files.params.get("train") or {}, files.stage_seconds)
    display = {"label": label, "detail": detail, "tone": tone, "trained_in": seconds}
    return {"gain_over_baseline": None} | arm | display  # older rounds have no gain


def training_seconds(
    phase: str, phases: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """Return the training time of all seeds of a phase and of the phases it starts from.

    Args:
        phase: its name; None is returned for other models.
        phases: section `train` of params.yaml.
        stages: the content of reports/stages.json.

    Returns:
        Wall-clock seconds; None where the time of one of the phases is unknown.
    """
    total = 0.0
    for _ in phases:  # bounds the length of the chain
        stage = stages.get(f"train@{phase}")
        if phase not in phases or stage is None:
            return None
        total += float(stage.get("own_seconds", stage["seconds"]))
        before = str(phases[phase].get("from", "")).split("/")
        if before[0] != "train":
            return total
        phase = before[1]
    return None


def _groups(groups: Table) -> Table:
    """Return the scores by group; none where there is one group."""
    if len(groups) < 2:
        return []
    return [
        {
            "group": line["group"] or "(none)",
            "rows": int(line["rows"]),
            "few": line["rows"] < FEW_ROWS,
            "gap": line["student"] - line["teacher"],
            **{role: line[role] for role in ROLES},
        }
        for line in groups
    ]


def _samples(files: RoundFiles, arms: Table) -> Table:
    samples = files.samples
    with_role = [arm for arm in arms if arm["role"] != "other"]
    return [
        {
            "kind": kind,
            "title": title,
            "why": why,
            "rows": [
                {
                    "prompt": behaviour_view.prompt_text(sample["prompt"]),
                    "pictures": pictures.inline(files.root, sample.get("images", ())),
                    "reference": sample["reference"],
                    "group": sample["group"],
                    "answers": [(arm, sample["answers"][arm["arm"]]) for arm in with_role],
                }
                for sample in samples
                if sample["kind"] == kind
            ],
        }
        for kind, (title, why) in KINDS.items()
    ]


def _stage_seconds(stages: dict[str, dict[str, Any]]) -> Table:
    most = max((stage["seconds"] for stage in stages.values()), default=0) or 1
    return [
        {"stage": name, **stage, "width": round(100 * stage["seconds"] / most, 2)}
        for name, stage in stages.items()
    ]


def _chosen(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record[name] for name in names if record.get(name) not in (None, "")}
