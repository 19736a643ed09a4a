"""Model card and dataset card, from the files of the round alone.

They contain no time, host or absolute path: the same round writes the same cards.
"""

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate.data.messages import prompt_text
from cohobate.data.records import (
    COLLECT,
    EVALUATE,
    FILTER,
    GENERATE,
    IMAGES,
    MODELS,
    Response,
    Row,
    read_rows,
)
from cohobate.evaluation.model_under_test import kind_of
from cohobate.evaluation.score_text import ScoreText
from cohobate.models import checkpoints
from cohobate.models.seeing import is_seeing
from tasks.export.form import Form
from tasks.export.student import Student, lineage

if TYPE_CHECKING:
    from jinja2 import Environment

CARD, NOTICE, DATA = "README.md", "NOTICE.txt", "train.jsonl"
LABELS = {
    "teacher": "teacher",
    "initial": "student before distillation",
    "baseline": "baseline: equal updates without a teacher",
    "baseline_best": "baseline, its best checkpoint on dev",
    "student": "**distilled student**",
}
_COSTS = ("responses", "prompt_tokens", "completion_tokens", "tokens", "cost", "energy")
"""Figures of a summary that say what something cost; a summary need not have any."""


class CardFiles:
    """Files of the round that the cards are made of."""

    @cached_property
    def models(self) -> dict[str, Any]:
        """What preflight pinned of teachers and student."""
        models: dict[str, Any] = _read(MODELS)
        return models

    @property
    def teachers(self) -> dict[str, Any]:
        """The teachers and their terms, by key."""
        teachers: dict[str, Any] = self.models["teachers"]
        return teachers

    @cached_property
    def evaluated(self) -> dict[str, Any]:
        """The key figures of the evaluation."""
        figures: dict[str, Any] = _read(EVALUATE / "summary.json")
        return figures

    @property
    def gate_passed(self) -> bool:
        """Whether the round showed what was asked of it."""
        return bool(self.evaluated["gate_passed"])

    @cached_property
    def about_data(self) -> dict[str, Any]:
        """What both cards say of rows and terms."""
        licences = {str(t["licence"]).lower() for t in self.teachers.values()}
        return {
            "teachers": self.teachers,
            "licence_tag": licences.pop() if len(licences) == 1 else "other",
            "collected": _read(COLLECT / "summary.json"),
            "rows": _read(FILTER / "summary.json"),
            "reference_answers": sum(
                _read(path).get("reference_answers", 0) for path in GENERATE.glob("*/summary.json")
            ),
            "notice": (COLLECT / NOTICE).exists(),
        }

    @property
    def cost(self) -> dict[str, dict[str, Any]]:
        """What the teachers' answers took, by teacher, as far as it was recorded."""
        costs = {}
        for path in sorted(GENERATE.glob("*/summary.json")):
            counts = {k: v for k, v in _read(path).items() if k.startswith(_COSTS)}
            costs[f"answers of {path.parent.name}"] = counts
        return {label: figures for label, figures in costs.items() if figures}


class Exported(NamedTuple):
    """One exported form, with the figures of its card."""

    form: Form
    seed: int
    """Of the checkpoint that it was made from."""
    rescored: dict[str, Any]
    example: Row
    """A row of the task, to show what a prompt looks like."""
    text: ScoreText
    """How scores are written."""
    serving: str = ""
    """How servers open it, in Markdown."""


def write_model_card(folder: Path, exported: Exported, student: Student, files: CardFiles) -> None:
    """Write README.md of one exported form."""
    row = exported.example
    source = lineage(student.by_seed[exported.seed])
    fields = {
        **exported._asdict(),
        "example": {"prompt": prompt_text(row.full_prompt), "answer": row.full_answer},
        "prefix": row.prefix,
        "usage": exported.form.usage_of(folder),
        "pipeline_tag": _pipeline_tag(folder),
        "embedder": checkpoints.is_embedder(folder),
        "pictures": len(row.images or ()),
        "unit": kind_of(folder).unit,
        "bases": [t["model"] for t in files.teachers.values() if t["model"].count("/") == 1],
        "student": student.row,
        "evaluated": files.evaluated,
        "arms": [arm | {"label": LABELS[arm["role"]]} for arm in student.compared],
        "start": files.models["student"],
        "source": source,
        "phase": source["provenance"],
        "cost": files.cost,
        **files.about_data,
    }
    _write(folder / CARD, "model_card.md.j2", fields)


def write_adapter_card(
    path: Path, fields: dict[str, Any], exported: Exported, files: CardFiles
) -> None:
    """Write README.md of an adapter.

    Args:
        path: of the card.
        fields: `repo`, `base_name` and `revision` (both empty where the base goes along).
        exported: a form of the merged student, with an example of the task.
        files: of the round.
    """
    row = exported.example
    example = {"prompt": prompt_text(row.full_prompt), "answer": row.full_answer}
    fields = {**fields, "example": example, "seed": exported.seed, "evaluated": files.evaluated}
    _write(path, "adapter_card.md.j2", fields | files.about_data)


def _pipeline_tag(folder: Path) -> str:
    if checkpoints.is_embedder(folder):
        return "sentence-similarity"
    if checkpoints.is_masked(folder):
        return "fill-mask"
    if is_seeing(folder):
        return "image-text-to-text"
    return "text-classification" if checkpoints.is_classifier(folder) else "text-generation"


def write_dataset(folder: Path, files: CardFiles) -> None:
    """Lay the training data of the round, its card and its notice into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FILTER / "kept.jsonl", folder / DATA)
    if IMAGES.is_dir():  # those of the training rows alone
        used = {name for row in read_rows(folder / DATA, Response) for name in row.images or ()}
        (folder / IMAGES.name).mkdir(exist_ok=True)
        for name in sorted(used):
            shutil.copyfile(IMAGES / name, folder / IMAGES.name / name)
    if files.about_data["notice"]:
        shutil.copyfile(COLLECT / NOTICE, folder / NOTICE)
    funnel = _read(FILTER / "funnel.json")
    fields = {"file": DATA, "funnel": funnel, **files.about_data}
    _write(folder / CARD, "dataset_card.md.j2", fields)


def _write(path: Path, template: str, fields: dict[str, Any]) -> None:
    path.write_text(_templates().get_template(template).render(fields), encoding="utf-8")


def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from cohobate.evaluation import number_text

    templates = Environment(
        loader=PackageLoader("tasks.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    written = ("points", "signed", "count", "short", "size", "figure")
    templates.filters |= {name: getattr(number_text, name) for name in written}
    return templates


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
