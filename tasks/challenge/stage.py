"""Compare the new student (challenger) with the one in use (champion), on the dev rows.

In:  data/collect/dev.jsonl, models/train/<student>, and the champion's checkpoint: before the
     first promotion that is models/init_student, the untrained student
Out: reports/challenge.json, which `dvc metrics show` shows; and, where the architectures
     differ, reports/latency.json, which nothing hashes (tasks/challenge/latency.py)

    {"promote": true, "why": "+8.2 points [+4.9, +11.6] on 500 dev rows", "seed": 2,
     "champion": 0.641, "challenger": 0.723, "gain": {"low": 0.049, "mean": 0.082, "high": 0.116},
     "by_seed": {"1": 0.721, "2": 0.725}, "growth": {"bits_per_byte": 1.05, …},
     "intervals": {"champion": {"low": 0.601, "mean": 0.641, "high": 0.680}, "challenger": {…}}}

Decoding and metric are those of `evaluate`. Test rows are not used: they must not select anything.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cohobate.data.records import DEV, TRAIN, VERDICT, Row, read_rows, write_json
from cohobate.errors import UserError
from cohobate.evaluation.bootstrap import Bootstrap
from cohobate.evaluation.footprint import footprint
from cohobate.evaluation.forgetting import Forgetting
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import generate_answers
from cohobate.generation.requests import Batching, Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision, resolve
from cohobate.params import Section, ValueOf
from cohobate.progress import say, track
from cohobate.scoring.metrics import DecidingMetric
from cohobate.scoring.verifiers import Task
from tasks.challenge.guards import Guards
from tasks.challenge.latency import Latency, timed_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTEXT = 64
"""Context length at which FLOPs are counted."""


class ChallengeParams(Section):
    """The champion, and the conditions of a promotion."""

    champion: str = "models/init_student"
    """Checkpoint of the student in use; `iterate_rounds` names the one it promoted last."""
    min_gain: float = Field(0.0, ge=0)
    """The lower end of the gain's interval must be above this."""
    guards: Guards = Guards()
    """Limits on size, work and forgetting."""
    latency: Latency = Latency()
    """Limit on latency, which `iterate_rounds` checks."""
    general: Forgetting = Forgetting()
    """General text, for the guard on forgetting."""
    batching: Batching = Batching()
    precision: Precision = "auto"
    """Number format of both models."""
    threads: int = Field(2, ge=1)
    """CPU threads."""


def run(
    challenge: ChallengeParams,
    task: Task,
    seeds: list[int],
    *,
    student: Annotated[str, ValueOf("evaluate.student")],
    metric: DecidingMetric,
    decoding: Annotated[Decoding, ValueOf("evaluate.decoding")],
) -> None:
    """Run the champion and all seeds of the phase `student` on the dev rows; write the verdict.

    Raises:
        UserError: no dev row has an answer.
    """
    rows = [row for row in read_rows(DEV, Row) if row.answer is not None]
    if not rows:
        raise UserError("no dev row has an answer", where=str(DEV), fix="give collect.split.dev")
    folders = {str(seed): TRAIN / student / f"seed-{seed}" for seed in seeds}
    folders["champion"] = Path(challenge.champion)
    scores, figures = {}, {}

    def score(text: str, row: Row) -> float:
        return metric.score(text, row.answer or "", task.verifier)

    for name, folder in folders.items():
        results = _measure(challenge, decoding, score, folder, rows, name=name)
        scores[name], figures[name] = results
    verdict = judge(challenge, scores, figures)
    write_json(VERDICT, verdict)
    if timed_apart(verdict):
        pair = {"champion": folders["champion"], "challenger": folders[str(verdict["seed"])]}
        prompts = [row.prompt for row in rows]
        challenge.latency.compare(
            pair, prompts, VERDICT, precision=challenge.precision, threads=challenge.threads
        )
    say(f"{'promote' if verdict['promote'] else 'keep the champion'}: {verdict['why']}")


def judge(
    challenge: ChallengeParams,
    scores: Mapping[str, "NDArray[np.float64]"],
    figures: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the verdict.

    Args:
        challenge: the conditions of a promotion.
        scores: for each row, by name: `champion`, or the seed.
        figures: the guarded figures, by the same names.
    """
    import numpy as np

    by_seed = {name: float(one.mean()) for name, one in scores.items() if name != "champion"}
    best = max(by_seed, key=lambda name: by_seed[name])  # the first one of equal seeds
    # The gain is that of the method, over all seeds; the best seed is the one to be promoted.
    both = {
        "challenger": np.stack([scores[name] for name in by_seed]),
        "champion": scores["champion"][None],
    }
    bootstrap = Bootstrap(both, draws=10_000, seed=0)
    gain = bootstrap.difference("challenger", "champion")
    growth = challenge.guards.growth(figures[best], figures["champion"])
    summary = f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    summary += f" on {len(scores['champion'])} dev rows"
    broken = challenge.guards.broken(growth)
    return {
        "promote": gain.low > challenge.min_gain and not broken,
        "why": "; ".join([summary, *broken]),
        "seed": int(best),
        "champion": round(float(scores["champion"].mean()), 6),
        "challenger": round(float(np.mean(list(by_seed.values()))), 6),
        "by_seed": {name: round(score, 6) for name, score in by_seed.items()},
        "gain": gain.rounded(),
        "intervals": {name: bootstrap.score(name).rounded() for name in both},
        "growth": growth,
        "number_format": resolve(challenge.precision, checkpoints.accelerator()),
    }


def _measure(
    challenge: ChallengeParams,
    decoding: Decoding,
    score: Callable[[str, Row], float],
    folder: Path,
    rows: list[Row],
    *,
    name: str,
) -> "tuple[NDArray[np.float64], dict[str, float]]":
    """Return a model's score on each row, and its guarded figures."""
    import numpy as np

    from cohobate.evaluation.answer_logprobs import AnswerLogprobs
    from cohobate.models.layers import blocks_of

    device = checkpoints.accelerator()
    model, tokenizer = load_frozen(folder, precision=challenge.precision, device=device)
    prefix = checkpoints.prompt_prefix(folder)
    prompts = [row.prefixed(prefix).full_prompt for row in rows]
    batching, threads = challenge.batching, challenge.threads
    generated = generate_answers(model, tokenizer, prompts, decoding, batching, threads=threads)
    scores = np.zeros(len(rows))
    for position, answer in track(generated, total=len(rows), label=f"{name} on dev rows"):
        scores[position] = score(answer.text, rows[position])
    logprobs = AnswerLogprobs(model, tokenizer, threads=threads)
    general = challenge.general.measure(logprobs, challenge.general.passages())
    size = footprint(model, folder, _CONTEXT)
    return scores, {
        "parameters": float(size.parameters),
        "flops_per_token": float(size.flops_per_token),
        "blocks": float(len(blocks_of(model))),
        "bits_per_byte": general["bits_per_byte"],
    }
