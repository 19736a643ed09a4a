"""Dev rows, and how a model of any kind is scored on them while it trains."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from cohobate.data.records import DEV_CHECKS, Row
from cohobate.data.tokenized import encode_all
from cohobate.evaluation.deciding_metric import AnswerScorer, ByTask
from cohobate.evaluation.judged_metrics import Rubric, WinRate
from cohobate.evaluation.model_under_test import kind_of
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Answer, Decoding
from cohobate.params import Section
from cohobate.scoring.metrics import AnswerMetric, BitsPerByte, LikelihoodScore, Perplexity
from cohobate.scoring.verifiers import Task

if TYPE_CHECKING:
    from cohobate.training.dev_checks import DevChecks, DevFigures, ModelInTraining


class _RowFigures(NamedTuple):
    """Figures of one row."""

    nats: float
    """Loss of the whole reference answer."""
    units: int
    """Tokens of it, or one label, or one document."""
    size: float = 0.0
    """By which a figure of likelihood divides."""
    score: float | None = None
    tokens: int | None = None
    """Of the answer."""
    ended: bool | None = None


class DevRows(Section):
    """The rows on which a phase is scored while it trains, and how: one file of `dev_checks`."""

    rows: tuple[Row, ...]
    metric: AnswerMetric | WinRate | Rubric | ByTask | Perplexity | BitsPerByte = Field(
        discriminator="type"
    )
    task: Task
    decoding: Decoding

    @classmethod
    def of_phase(cls, section: str, phase: str) -> "DevRows":
        """Read the rows of a phase, as the stage `dev_checks` wrote them."""
        return cls.model_validate(json.loads(dev_file(section, phase).read_bytes()))

    def lower_is_better(self, by: Literal["score", "loss"]) -> bool:
        """Return whether a lower figure is the better one."""
        return by == "loss" or isinstance(self.metric, LikelihoodScore)

    def content(self) -> Any:
        """Return all of it as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)

    def figures(self, trained: "ModelInTraining", checks: "DevChecks", update: int) -> "DevFigures":
        """Return the figures of a model between two updates; each worker scores its share."""
        from cohobate import processes
        from cohobate.models import sharding

        training = trained.model.training
        trained.model.eval()
        own = processes.shard(self.rows)
        with _copied(trained) as tested:
            score = partial(self._figures, tested, generates=checks.by == "score")
            figures = processes.unshard(sharding.call_whole(trained.model, score, own))
        trained.model.train(training)
        return self._means(figures, checks.by, update)

    def _figures(
        self, trained: "ModelInTraining", rows: Sequence[Row], *, generates: bool
    ) -> list[_RowFigures]:
        import torch

        tested = _opened(trained).with_documents(row.full_answer for row in self.rows)
        rows = tested.prefixed(rows)
        device = trained.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=trained.autocast):
            losses = [*tested.answer_losses(rows, threads=trained.threads)]
            units = tested.answer_units(rows)
            figures = [_RowFigures(x * n, n) for x, n in zip(losses, units, strict=True)]
            if isinstance(self.metric, LikelihoodScore):
                metric, texts = self.metric, encode_all(tested.tokenizer, rows)
                return [
                    one._replace(size=metric.size(row.answer or "", len(text.completion_ids)))
                    for one, row, text in zip(figures, rows, texts, strict=True)
                ]
            if not generates:
                return figures
            prompts = [row.full_prompt for row in rows]
            answers = dict(tested.answers(prompts, self.decoding, threads=trained.threads))
        in_order = [answers[n] for n in range(len(rows))]
        given = [answer.full_text for answer in in_order]
        scores = AnswerScorer(self.metric, self.task).scores(rows, given)
        return [_answered(*parts, tested) for parts in zip(figures, scores, in_order, strict=True)]

    def _means(
        self, rows: Sequence[_RowFigures], by: Literal["score", "loss"], update: int
    ) -> "DevFigures":
        from cohobate.training.dev_checks import DevFigures

        # infinite where a classifier has no such label
        finite = [row for row in rows if math.isfinite(row.nats)]
        loss = _ratio(sum(row.nats for row in finite), sum(row.units for row in finite))
        score = _mean([row.score for row in rows])
        if by == "score" and isinstance(self.metric, LikelihoodScore):
            nats = _ratio(sum(row.nats for row in rows), sum(row.size for row in rows))
            score = None if nats is None else self.metric.figure(nats)
        length, ended = _mean([row.tokens for row in rows]), _mean([row.ended for row in rows])
        return DevFigures(update, *map(_rounded, (score, loss, length, ended)))


def dev_file(section: str, phase: str) -> Path:
    """Return the file with the dev rows of a phase of `train` or `assist`."""
    return DEV_CHECKS / section / f"{phase}.json"


@contextmanager
def _copied(trained: "ModelInTraining") -> "Iterator[ModelInTraining]":
    """Yield a model as it answers fastest on a CPU: a frozen copy in its number format, packed.

    Else autocast would cast every weight anew for each batch of prompts: 200 rows of the default
    student took 11.6 s of CPU so, and 6.4 s of the copy. On a GPU, sharded, or of more than
    `PACKED_BYTES` it answers as it is.
    """
    import torch
    from torch.distributed.tensor import DTensor

    from cohobate.fast.frozen import PACKED_BYTES
    from cohobate.fast.packed_linear import pack

    model = trained.model
    weights = [*model.parameters()]
    sharded = any(isinstance(weight, DTensor) for weight in weights)
    size = sum(weight.nbytes for weight in weights)
    if model.device.type != "cpu" or sharded or size > PACKED_BYTES:
        yield trained
        return
    frozen = copy.deepcopy(model).requires_grad_(False)
    if trained.autocast:
        frozen.to(torch.bfloat16)
    pack(frozen, PACKED_BYTES)
    yield trained._replace(model=frozen, autocast=False)


def _opened(trained: "ModelInTraining") -> ModelUnderTest:
    """Return a model in training as what stages need of any model."""
    tested = kind_of(trained.start)(trained.start, "float32")
    # a cached property that would load the checkpoint: the weights are those in memory
    vars(tested)["_loaded"] = (trained.model, trained.tokenizer)
    tested.prefix = trained.prefix
    return tested


def _answered(
    figures: _RowFigures, score: float, answer: Answer, tested: ModelUnderTest
) -> _RowFigures:
    """Return a row's figures with those of its answer."""
    if not tested.scores_tokens:  # a label or a ranking has no length
        return figures._replace(score=score)
    text = (answer.reasoning or "") + answer.full_text
    tokens = len(tested.tokenizer.encode(text, add_special_tokens=False))
    return figures._replace(score=score, tokens=tokens, ended=answer.finish == "stop")


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return _ratio(sum(numbers), len(numbers))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _rounded(value: Any) -> float | None:
    # the last digits depend on how rows were shared among workers
    return None if value is None else round(value, 6)
