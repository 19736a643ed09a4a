"""A teacher whose weights are not here is asked about given rows, for stages other than `generate`.

The prompts go out as they stand, under the same keys as those of `generate`: through the ledger, so
that each answer is bought once, and within the cap on what the teacher may cost.
"""

from collections.abc import Sequence

from tasks.errors import UserError
from tasks.generate.interview import answered_into, ask_of
from tasks.generate.ledger import Ledger
from tasks.generate.places import journal_of
from tasks.generate.spending import noted
from tasks.generate.stage import GenerateParams, identity
from tasks.models.decoding import Answer, Decoding
from tasks.progress import Meter, say
from tasks.rows.records import ADAPT, Row


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
        missing = {ask.key: ask for ask in asks if ask.key not in ledger}
        failures: dict[str, str] = {}
        if missing:
            meter = Meter(what, len(missing))
            answering = backend.open(ADAPT / teacher, ledger.spent)
            failures = answered_into(ledger, answering, [*missing.values()], how, meter.advance)
            meter.finish()
        known = len({ask.key for ask in asks}) - len(missing)
        say(f"{what}: {len(missing) - len(failures)} answers bought, {known} from the ledger")
        _check(failures, [ask.key for ask in asks], generate.unanswered, teacher)
        empty = Answer("", "unanswered", None)
        return [empty if ask.key in failures else ledger[ask.key] for ask in asks]


def _check(failures: dict[str, str], keys: Sequence[str], allowed: float, teacher: str) -> None:
    """Refuse to go on when too many rows were not answered."""
    left = [failures[key] for key in keys if key in failures]
    if len(left) > allowed * len(keys):
        raise UserError(
            f"{len(left)} of {len(keys)} rows were not answered; the first: {left[0]}",
            where=f"teacher {teacher}",
            mend="run again: they alone are asked; or allow for some by generate.unanswered",
        )
