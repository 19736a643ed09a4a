"""What a service did with each prompt of a run, in the order in which prompts were first sent.

Whether prompts fail in a row is decided by that order, not by the order in which requests end:
retried ones end last. A refusal whose cause may be the account or the service counts as the
prompt's own once a prompt that was sent later has been answered.
"""

from collections import Counter
from collections.abc import Mapping

from cohobate.backends.api_errors import ServiceHistory
from cohobate.backends.requests import NoAnswer, TeacherRequest
from cohobate.generation.requests import Answer

_IN_A_ROW = 5  # prompts without an answer from which a service counts as down
_REFUSED_IN_A_ROW = 50  # refused prompts from which a service counts as refusing all


class ServiceRecord:
    """The prompts of a run: which were tried, answered, refused or failed."""

    def __init__(self, answered_before: bool) -> None:
        self.tries: Counter[str] = Counter()
        """Requests by key."""
        self.past = ServiceHistory(answered_before=answered_before)
        self._number: dict[str, int] = {}
        self._latest = -1
        """Number of the latest prompt that was answered."""
        self._failed: set[int] = set()
        self._refused: set[int] = set()
        self._paid: Counter[str] = Counter()
        self._doubtful: dict[str, NoAnswer] = {}

    def add(self, request: TeacherRequest) -> None:
        """Number a prompt that is sent; it keeps its number when it is sent again."""
        self._number.setdefault(request.key, len(self._number))

    def on_answer(self, request: TeacherRequest) -> None:
        """Record an answer."""
        self._latest = max(self._latest, self._number[request.key])
        self.past = self.past._replace(answered=True)

    def may_retry(self, request: TeacherRequest, attempts: int) -> bool:
        """Return whether a prompt is sent again after a reply that may have been charged for."""
        self._paid[request.key] += 1
        return (
            len(request.replies) + self._paid[request.key] < 2
            and self.tries[request.key] < attempts
        )

    def on_failure(self, request: TeacherRequest) -> int:
        """Record a prompt without an answer; return the number in a row, 0 while they are few."""
        return _row(self._failed, self._number[request.key], _IN_A_ROW)

    def on_refusal(self, request: TeacherRequest, certain: bool, cost: float) -> int:
        """Record a refused prompt; return the number in a row, 0 while they are few.

        While nothing was ever answered, a refusal that costs money, or whose cause is uncertain,
        counts as a failure of the service.
        """
        if not any(self.past) and (cost or not certain):
            return self.on_failure(request)
        # the service works: a refusal of this prompt says nothing of the next
        if certain and any(self.past):
            return 0
        return _row(self._refused, self._number[request.key], _REFUSED_IN_A_ROW)

    def settle(
        self, ended: Mapping[TeacherRequest, Answer | NoAnswer]
    ) -> dict[str, Answer | NoAnswer]:
        """Return the outcomes that are final by now, earlier doubtful ones among them."""
        outcomes: dict[str, Answer | NoAnswer] = {}
        for request, outcome in ended.items():
            if isinstance(outcome, NoAnswer) and outcome.state == "doubtful":
                self._doubtful[request.key] = outcome
            else:
                outcomes[request.key] = outcome
        # a later prompt was answered, so the account is fine and the prompt was the cause
        for key in [key for key in self._doubtful if self._number[key] < self._latest]:
            outcomes[key] = self._doubtful.pop(key)._replace(state="refused")
        return outcomes

    def remaining(self) -> dict[str, Answer | NoAnswer]:
        """Return the outcomes that are still doubtful, once all prompts were sent."""
        left: dict[str, Answer | NoAnswer] = {**self._doubtful}
        self._doubtful.clear()
        return left


def _row(numbers: set[int], new: int, limit: int) -> int:
    """Add a number; return how many follow one another around it, 0 while below the limit."""
    numbers.add(new)
    # runs grow from both sides: requests end in any order
    first = last = new
    while first - 1 in numbers:
        first -= 1
    while last + 1 in numbers:
        last += 1
    return last - first + 1 if last - first + 1 >= limit else 0
