"""Make preference pairs: two answers to one prompt, a chosen and a rejected one.

In:  data/generate/<teacher>/responses.jsonl, data/filter, the labelled rows of data/collect; the
     student and the judge that `preferences` names, where they are used
Out: data/preferences/pairs.jsonl       none with `{type: none}`, the default
     data/preferences/summary.json      counts, mean margin, and length bias

A row of pairs.jsonl:

    {"chosen": " animal", "chosen_origin": "ground_truth", "group": "animal",
     "id": "58a1f2e09c7d3b46", "margin": 1.0,
     "prompt": "Definition: any of various small short-tailed rodents\\nCategory:",
     "rejected": " plant", "rejected_origin": "student"}

`chosen_reasoning`, `chosen_tool_calls` and the same of the rejected answer are there where an
answer has reasoning, or calls tools.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from cohobate.data.records import (
    LABELLED,
    PREFERENCES,
    Pair,
    Row,
    read_rows,
    write_json,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.models import hub
from cohobate.progress import Meter, say
from cohobate.scoring.verifiers import Task
from tasks.preferences.candidates import NoPairs, Pairing, PairSource
from tasks.preferences.ranking import Candidates, RankingContext, Scores

PAIRS = PREFERENCES / "pairs.jsonl"
_WINDOW = 256


def run(preferences: Pairing, task: Task) -> None:
    """Rank the answers to each prompt, and write the pairs.

    Raises:
        UserError: the pairing made no pair.
    """
    report = Report(preferences.type)
    pairs = iter(()) if isinstance(preferences, NoPairs) else _pairs(preferences, task, report)
    count = write_rows(PAIRS, pairs)
    write_json(PREFERENCES / "summary.json", report.summary())
    if not count and not isinstance(preferences, NoPairs):
        raise UserError(
            f"no pair from {report.prompts} prompts with different answers: "
            f"{report.ties} ties, {report.unknown} without a verdict",
            where=str(PAIRS),
            fix="draw more samples (generate.samples), lower preferences.min_margin or "
            "rank by another",
        )
    say(f"{count} pairs")


@dataclass
class Report:
    """Counts for the summary."""

    type: str
    prompts: int = 0
    ties: int = 0
    unknown: int = 0
    pairs: int = 0
    longer: int = 0
    """Pairs whose chosen answer is the longer one."""
    shorter: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    """Of the characters of the chosen and the rejected answers."""
    margin: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, pair: Pair) -> None:
        """Add a pair."""
        chosen, rejected = len(pair.chosen.strip()), len(pair.rejected.strip())
        self.pairs += 1
        self.longer += chosen > rejected
        self.shorter += chosen < rejected
        self.sums.update(chosen=chosen, rejected=rejected)
        self.margin += pair.margin

    def summary(self) -> dict[str, Any]:
        """Return the figures; length bias: share of longer chosen answers less that of shorter."""
        count = max(self.pairs, 1)
        return {
            "type": self.type,
            "pairs": self.pairs,
            "prompts_with_different_answers": self.prompts,
            "ties": self.ties,
            "without_verdict": self.unknown,
            "mean_margin": round(self.margin / count, 4),
            "mean_characters_chosen": round(self.sums["chosen"] / count, 2),
            "mean_characters_rejected": round(self.sums["rejected"] / count, 2),
            "chosen_is_longer": round(self.longer / count, 4),
            "chosen_is_shorter": round(self.shorter / count, 4),
            "length_bias": round((self.longer - self.shorter) / count, 4),
            **self.counts,
        }


def _pairs(preferences: PairSource, task: Task, report: Report) -> Iterator[Pair]:
    labelled = (row for row in read_rows(LABELLED, Row) if row.answer is not None)
    references = {row.id: row.full_answer for row in labelled}
    context = RankingContext(
        task, references, partial(hub.resolve_path, preferences.judge), report.counts
    )
    scoring = preferences.by.open(context)
    remaining = islice(preferences.candidates(), preferences.prompts)
    meter = Meter(f"preferences {preferences.by.type}", preferences.prompts or 0)
    while window := list(islice(remaining, _WINDOW)):
        report.prompts += len(window)
        for candidates, scores in zip(window, scoring(window), strict=True):
            pair = _best_and_worst(preferences, candidates, scores, report)
            if pair is not None:
                report.note(pair)
                yield pair
        meter.advance(len(window))
    meter.finish()


def _best_and_worst(
    preferences: PairSource, candidates: Candidates, scores: Scores, report: Report
) -> Pair | None:
    if scores is None:
        report.unknown += 1
        return None
    ranked = sorted(range(len(scores)), key=lambda n: -scores[n])  # equal scores keep their order
    best, worst = ranked[0], ranked[-1]
    margin = scores[best] - scores[worst]
    if margin <= 0 or margin < preferences.min_margin:
        report.ties += 1
        by_length = sorted(ranked, key=lambda n: len(candidates.answers[n].full_text.strip()))
        best, worst = by_length[0], by_length[-1]
        texts = [candidates.answers[n].full_text for n in (best, worst)]
        if preferences.ties == "drop" or len(texts[0].strip()) == len(texts[1].strip()):
            return None
        margin = 0.0
    chosen, rejected = candidates.answers[best], candidates.answers[worst]
    return Pair(
        id=candidates.id,
        prompt=candidates.prompt,
        prefix=candidates.prefix,
        chosen=chosen.text,
        chosen_reasoning=chosen.reasoning,
        chosen_tool_calls=chosen.tool_calls,
        rejected=rejected.text,
        rejected_reasoning=rejected.reasoning,
        rejected_tool_calls=rejected.tool_calls,
        chosen_origin=chosen.origin,
        rejected_origin=rejected.origin,
        margin=round(margin, 4),
        group=candidates.group,
        task=candidates.task,
        weight=candidates.weight,
    )
