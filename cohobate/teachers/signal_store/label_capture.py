"""Capture of label distributions: a teacher's, over the prompts of a file's rows.

A prompt is captured once, however many answers the file has to it. Rows stream in shards, as those
of the other forms do: a capture that was killed resumes after its last complete shard.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cohobate import sealed_folder
from cohobate.data.records import GENERATE, Response, read_rows, write_json, write_rows
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import resolve
from cohobate.progress import Meter, say
from cohobate.scoring.labels import LabelTexts
from cohobate.teachers.signal_store.label_store import (
    LOGP,
    ROW,
    SMALLEST,
    LabelOrigin,
    index_of,
)
from cohobate.teachers.signal_store.missing import MISSING, MissingRow
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import (
    FIGURES,
    WORK,
    capture_key,
    line_chunks,
    read_figures,
)
from cohobate.teachers.signal_store.store import ABOUT, INDEX
from cohobate.teachers.signal_store.teacher_pass import CapturedTeacher

if TYPE_CHECKING:
    from cohobate.generation.label_likelihood import Ids, LabelLikelihood
    from cohobate.teachers.signal_store.label_form import StoredLabels


class Scored(NamedTuple):
    """Rows whose distributions are given, and what is known of them."""

    rows: list[Response]
    logp_RC: "np.ndarray[Any, Any]"  # noqa: N815
    """Log-probabilities of the labels, each row's made to sum to 1."""
    figures: dict[str, float]
    """Sums of statistics over the rows."""
    missing: list[MissingRow]


Scorer = Callable[[Sequence[Response], Callable[[], None]], Scored]
"""Gives the distributions of some rows, each with a prompt of its own; calls the second argument
after each row that took time."""


def capture_labels(
    teacher: str, rows: Path, folder: Path, capture: CaptureParams, labels: LabelTexts
) -> dict[str, Any]:
    """Write the label store of one teacher over the prompts of a file.

    Args:
        teacher: its key; its checkpoint is models/adapt/<teacher>.
        rows: a file of `Response` rows.
        folder: where the store is published.
        capture: its settings, with `signals` of the form labels.
        labels: the task's, and how they are written.

    Returns:
        Key figures: prompts, labels, bytes a prompt, and the form's statistics.

    Raises:
        UserError: no prompt can be captured; or the teacher's checkpoint is damaged.
    """
    form: StoredLabels = capture.signals  # type: ignore[assignment]
    scorer, number_format, decided = _scorer(teacher, capture, labels)
    address = checkpoints.fingerprint(_checkpoint(teacher))
    origin = LabelOrigin.of(form, address, labels, number_format)
    key = capture_key(origin, rows, capture.decided_by() | decided, __name__)
    with rows.open("rb") as lines:
        meter = Meter(f"capture {teacher}", sum(1 for _ in lines))
    shards: list[Path] = []
    figures, done = [], 0
    for number, chunk in enumerate(line_chunks(rows, capture.shard_rows)):
        shards.append(WORK / folder.name / key / f"shard-{number:05}")
        complete = read_figures(shards[-1])
        if complete is None:
            parsed = [Response.model_validate_json(line) for line in chunk]
            complete = _write_shard(shards[-1], scorer(_distinct(parsed), meter.advance))
        else:
            say(f"shard {number} is complete: its {complete['rows']:.0f} rows are kept")
        meter.skip(max(0, done + len(chunk) - meter.done))  # rows of a prompt that is done
        done += len(chunk)
        figures.append(complete)
    meter.finish()
    count, missing = _publish(shards, folder, origin)
    shutil.rmtree(WORK / folder.name)
    if not count:
        reason = missing[0].reason if missing else "there are no rows to capture"
        raise UserError(f"no prompt has a distribution: {reason}", where=str(rows))
    write_rows(folder / MISSING, missing)
    return _summary(figures, folder, count, missing)


def _checkpoint(teacher: str) -> Path:
    from cohobate.data.records import ADAPT

    return ADAPT / teacher


def _scorer(
    teacher: str, capture: CaptureParams, labels: LabelTexts
) -> tuple[Scorer, Any, dict[str, Any]]:
    """Return what gives the distributions, its number format, and what else decides them."""
    form: StoredLabels = capture.signals  # type: ignore[assignment]
    if form.by == "votes":
        responses = GENERATE / teacher / "responses.jsonl"
        decided = {"responses": sealed_folder.sha256_of(responses)}
        return Votes(responses, labels), "votes", decided
    number_format = resolve(capture.precision, checkpoints.accelerator())
    return TeacherLikelihood(teacher, capture, labels, number_format), number_format, {}


def _distinct(rows: Sequence[Response]) -> list[Response]:
    """Return the first row of each prompt that is answered; auxiliary targets are no labels."""
    answered = (row for row in rows if not (row.is_raw_text or row.target))
    return list({row.id: row for row in reversed([*answered])}.values())[::-1]


class TeacherLikelihood:
    """The likelihood of each label's text behind the prompt, by the teacher's weights."""

    def __init__(
        self, teacher: str, capture: CaptureParams, labels: LabelTexts, number_format: Any
    ) -> None:
        self.teacher = CapturedTeacher(_checkpoint(teacher), number_format)
        self.capture, self.texts = capture, labels.texts
        self._likelihood: LabelLikelihood | None = None

    def __call__(self, rows: Sequence[Response], advance: Callable[[], None]) -> Scored:
        """Return the distributions; rows of more than `capture.max_tokens` are missing."""
        prompts, labels = self._encoded(rows)
        most = self.capture.max_tokens or 1 << 62
        short = [n for n, ids in enumerate(prompts) if len(ids) + max(map(len, labels[n])) <= most]
        missing = [
            MissingRow(key=row.id, reason=f"more than {most} tokens with its label")
            for n, row in enumerate(rows)
            if n not in set(short)
        ]
        logp_RC = np.zeros((len(short), len(self.texts)))
        scored = self._model().log_likelihoods(
            [prompts[n] for n in short], [labels[n] for n in short]
        )
        for place, logp_C in scored:
            advance()
            if not logp_C.isfinite().all():
                raise UserError(
                    "the teacher's logits are not finite", where=f"row {rows[short[place]].id}"
                )
            logp_RC[place] = logp_C.numpy()
        logp_R1 = np.logaddexp.reduce(logp_RC, axis=1, keepdims=True)
        figures = {"mean_mass_of_labels": float(np.exp(logp_R1).sum())}
        return Scored([rows[n] for n in short], logp_RC - logp_R1, figures, missing)

    def _model(self) -> "LabelLikelihood":
        from cohobate.generation.label_likelihood import LabelLikelihood

        if self._likelihood is None:
            self._likelihood = LabelLikelihood(
                self.teacher.model,
                self.teacher.head,
                self.capture.batch_tokens,
                self.capture.chunk_tokens,
                self.capture.threads,
            )
        return self._likelihood

    def _encoded(self, rows: Sequence[Response]) -> "tuple[list[list[int]], list[tuple[Ids, ...]]]":
        """Return each prompt's ids as the teacher reads it, and those of the labels behind it."""
        read = [row.for_teacher().prefixed(None) for row in rows]
        prompts: list[list[int]] = [[] for _ in rows]
        labels: list[tuple[Ids, ...]] = [() for _ in rows]
        texts = [n for n, row in enumerate(read) if isinstance(row.prompt, str)]
        if texts:
            # text is tokenised piece by piece: the labels have the same ids behind every prompt
            (_, own) = self._with_labels(read[texts[0]])
            first = [next(_answered(read[n], self.texts)) for n in texts]
            for n, one in zip(texts, encode_all(self.teacher.tokenizer, first), strict=True):
                prompts[n], labels[n] = one.prompt_ids, own
        for n, row in enumerate(read):
            if not isinstance(row.prompt, str):
                prompts[n], labels[n] = self._with_labels(row)
        return prompts, labels

    def _with_labels(self, row: Response) -> "tuple[list[int], tuple[Ids, ...]]":
        """Return the ids of a prompt, and of each label behind it with what closes it."""
        encoded = list(encode_all(self.teacher.tokenizer, [*_answered(row, self.texts)]))
        if any(one.prompt_ids != encoded[0].prompt_ids for one in encoded):
            raise UserError(
                "the chat template writes the prompt otherwise before another label",
                where=f"row {row.id}",
                fix="cohobate run --set 'capture.signals={type: labels, by: votes}'",
            )
        return encoded[0].prompt_ids, tuple(tuple(one.completion_ids) for one in encoded)


def _answered(row: Response, texts: Sequence[str]) -> Iterator[Response]:
    """Yield a row with each of the texts as its answer."""
    bare = {"reasoning": None, "tool_calls": None, "learn": None, "cut": None}
    return (row.model_copy(update=bare | {"answer": text}) for text in texts)


class Votes:
    """The share of each label among the teacher's answers to a prompt.

    An answer that is no label is no vote: of a prompt without any, nothing is known.
    """

    def __init__(self, responses: Path, labels: LabelTexts) -> None:
        self.count = len(labels.texts)
        self._votes: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for row in read_rows(responses, Response):
            index = None if row.target else labels.labels.index(row.full_answer)
            if index is not None:
                self._votes[row.id][index] += 1

    def __call__(self, rows: Sequence[Response], advance: Callable[[], None]) -> Scored:
        """Return the distributions of the prompts with a vote."""
        voted = [row for row in rows if self._votes.get(row.id)]
        missing = [
            MissingRow(key=row.id, reason="none of the teacher's answers is a label")
            for row in rows
            if not self._votes.get(row.id)
        ]
        votes_RC = np.zeros((len(voted), self.count))
        for place, row in enumerate(voted):
            for index, votes in self._votes[row.id].items():
                votes_RC[place, index] = votes
        total_R1 = votes_RC.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            logp_RC = np.log(votes_RC / total_R1)
        return Scored(voted, logp_RC, {"mean_votes": float(total_R1.sum())}, missing)


def _write_shard(shard: Path, scored: Scored) -> dict[str, float]:
    """Write the distributions of some rows; return the shard's figures."""
    figures = {"rows": float(len(scored.rows)), "tokens": 0.0} | scored.figures
    entropy_R = -(np.exp(scored.logp_RC) * scored.logp_RC.clip(SMALLEST)).sum(1)
    figures["mean_entropy"] = float(entropy_R.sum())
    with sealed_folder.staged(shard) as partial:
        np.save(partial / INDEX, index_of(scored.rows))
        np.save(partial / LOGP, scored.logp_RC.clip(SMALLEST).astype("<f2"))
        write_rows(partial / MISSING, scored.missing)
        write_json(partial / FIGURES, figures)
    return figures


def _publish(
    shards: Sequence[Path], folder: Path, origin: LabelOrigin
) -> tuple[int, list[MissingRow]]:
    """Publish complete shards as a store; return its prompts, and those that are missing."""
    index = np.concatenate([np.load(s / INDEX) for s in shards] or [np.empty(0, ROW)])
    logp_RC = np.concatenate([np.load(s / LOGP) for s in shards] or [np.empty((0, 0), "<f2")])
    # a prompt with answers in two shards was computed twice: the first is kept
    keys, first = np.unique(index["key"], return_index=True)
    with sealed_folder.staged(folder) as partial:
        np.save(partial / INDEX, index[first])
        np.save(partial / LOGP, logp_RC[first])
        about = origin.model_copy(update={"rows": len(keys)})
        write_json(partial / ABOUT, about.model_dump(mode="json"))
    missing = {row.key: row for s in shards for row in read_rows(s / MISSING, MissingRow)}
    return len(keys), [*missing.values()]


def _summary(
    figures: Sequence[dict[str, float]], folder: Path, rows: int, missing: Sequence[MissingRow]
) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for each in figures:
        total.update(each)
    count = total.pop("rows")
    del total["tokens"]
    size = sum((folder / name).stat().st_size for name in (INDEX, LOGP))
    means = {name: round(value / max(count, 1), 4) for name, value in sorted(total.items())}
    if missing:
        say(f"{len(missing)} prompts have no signals: {folder / MISSING} says why")
        means["missing"] = len(missing)
    return {"rows": rows, "bytes_per_row": round(size / rows, 1)} | means
