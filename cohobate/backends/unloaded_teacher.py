"""A teacher whose weights are not here is asked about given rows, for stages other than `generate`.

The prompts go out as they stand, under the same keys as those of `generate`: through the ledger, so
that each answer is bought once, and within the cap on what the teacher may cost.
"""

from collections.abc import Sequence

from cohobate.backends.cost_log import noted
from cohobate.backends.endpoint import identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import journal_of
from cohobate.backends.requests import Ask, History
from cohobate.backends.run_teacher import answered_into, ask_of, how_to_go_on, missing_of
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import ADAPT, Row
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding, split_reasoning
from cohobate.progress import Meter, say

_DECODING = "evaluate.decoding"  # where the limit of these answers stands in params.yaml


def asked(
    teacher: str, generate: GenerateParams, rows: Sequence[Row], how: Decoding, what: str
) -> list[Answer]:
    """Return the teacher's answer to each row; an empty one where it gives none.

    Args:
        teacher: its key.
        generate: where its answers are computed, and what they may cost.
        rows: what is asked.
        how: how it answers.
        what: is said of the work.

    Raises:
        UserError: the service cannot be used, the cap is reached, or more rows stay without an
            answer than `generate.unanswered` allows.
    """
    backend = generate.backend_of(teacher)
    asks = [ask_of(backend, how, row, row.prompt) for row in rows]
    journal = journal_of(identity(teacher), generate.ledger)
    with Ledger(journal) as ledger, noted(teacher, ledger):
        missing = missing_of(ledger, asks, generate.refused)
        failures: dict[str, str] = {}
        if missing:
            meter = Meter(what, len(missing))
            answering = backend.open(ADAPT / teacher, History(ledger.spent, len(ledger)))
            failures = answered_into(ledger, answering, [*missing.values()], how, meter.advance)
            meter.finish()
        known = len({ask.key for ask in asks if ask.key in ledger}) - len(missing) + len(failures)
        say(f"{what}: {len(missing) - len(failures)} answers bought, {known} from the ledger")
        _check(ledger, failures, asks, generate.unanswered, teacher)
        empty = Answer("", "unanswered", None)
        return [split_reasoning(ledger[ask.key]) if ask.key in ledger else empty for ask in asks]


def _check(
    ledger: Ledger, failures: dict[str, str], asks: Sequence[Ask], allowed: float, teacher: str
) -> None:
    """Refuse to go on when too many rows were not answered."""
    left = [ask.key for ask in asks if ask.key not in ledger]
    if len(left) > allowed * len(asks):
        first = (ledger.refusals | failures)[left[0]].replace("generate.decoding", _DECODING)
        raise UserError(
            f"{len(left)} of {len(asks)} rows were not answered; the first: {first}",
            where=f"teacher {teacher}",
            fix=how_to_go_on(first, len(left), sum(key in ledger.refusals for key in left)),
        )
