"""A teacher behind an endpoint: buy its answers to given rows, for stages other than `generate`.

Prompts are sent unchanged, under the same keys as those of `generate`: the ledger sees to it that
each answer is bought once, and the cap on the teacher's cost holds.
"""

from collections.abc import Sequence

from cohobate.backends.api_errors import fix_in_reason
from cohobate.backends.cost_log import log_cost
from cohobate.backends.endpoint import identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.requests import LedgerTotals, TeacherRequest
from cohobate.backends.run_teacher import add_answers, make_request, missing_requests, suggest_fix
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import ADAPT, Row
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding, split_reasoning
from cohobate.progress import Meter, say

_DECODING = "evaluate.decoding"  # where the limit of these answers stands in params.yaml


def buy_answers(
    teacher: str, generate: GenerateParams, rows: Sequence[Row], decoding: Decoding, label: str
) -> list[Answer]:
    """Return the teacher's answer to each row; an empty one where it gives none.

    Args:
        teacher: its key.
        generate: where its answers are computed, and what they may cost.
        rows: their prompts are sent.
        decoding: its settings.
        label: names the work in progress messages.

    Raises:
        UserError: the service cannot be used, the cap is reached, or more rows stay without an
            answer than `generate.unanswered` allows.
    """
    if blind := next((row.id for row in rows if row.images), None):
        raise UserError(
            f"rows have pictures, which are not sent to the teacher {teacher}",
            where=f"row {blind}",
            fix="cohobate run --set evaluate.teacher_reads=teacher_prompt",
        )
    backend = generate.backend_of(teacher)
    requests = [make_request(backend, decoding, row, row.prompt) for row in rows]
    storage = storage_for(identity(teacher), generate.ledger)
    with Ledger(storage) as ledger, log_cost(teacher, ledger):
        missing = missing_requests(ledger, requests, generate.refused)
        failures: dict[str, str] = {}
        if missing:
            meter = Meter(label, len(missing))
            answer_function = backend.open(ADAPT / teacher, LedgerTotals(ledger.spent, len(ledger)))
            failures = add_answers(
                ledger, answer_function, [*missing.values()], decoding, meter.advance
            )
            meter.finish()
        # rows may have one prompt, and one answer: keys are counted once
        known = (
            len({request.key for request in requests if request.key in ledger})
            - len(missing)
            + len(failures)
        )
        say(f"{label}: {len(missing) - len(failures)} answers bought, {known} from the ledger")
        _check(ledger, failures, requests, generate.unanswered, teacher)
        return [_answer(ledger, request.key) for request in requests]


def _answer(ledger: Ledger, key: str) -> Answer:
    if key in ledger:
        return split_reasoning(ledger[key])
    # a limit that went into reasoning cuts an answer off as any other
    cut = bool(fix_in_reason(ledger.refusals.get(key, "")))
    return Answer("", "length" if cut else "unanswered", None)


def _check(
    ledger: Ledger,
    failures: dict[str, str],
    requests: Sequence[TeacherRequest],
    allowed: float,
    teacher: str,
) -> None:
    """Raise `UserError` when too many rows have no answer."""
    left = [request.key for request in requests if request.key not in ledger]
    if len(left) > allowed * len(requests):
        first = (ledger.refusals | failures)[left[0]].replace("generate.decoding", _DECODING)
        raise UserError(
            f"{len(left)} of {len(requests)} rows were not answered; the first: {first}",
            where=f"teacher {teacher}",
            fix=suggest_fix(
                first, len(left), sum(key in ledger.refusals for key in left), len(requests)
            ),
        )
