"""Stop rules: when rounds end before the requested number."""

from collections.abc import Sequence

from flows.round_history import RoundRecord
from flows.round_settings import Stop


def reason_to_stop(stop: Stop, rounds: Sequence[RoundRecord]) -> str | None:
    """Return the reason to start no further round; None where no rule holds."""
    if not rounds:
        return None
    kept = rounds[-1].test.get("retention_low") or 0.0
    if stop.retention is not None and rounds[-1].promoted and kept >= stop.retention:
        return f"the student keeps {kept:.3f} of the teacher's score; the rule is {stop.retention}"
    recent = rounds[-stop.without_gain :] if stop.without_gain else []
    if stop.without_gain and len(recent) == stop.without_gain:  # noqa: SIM102
        if not any(record.promoted for record in recent):
            return f"{stop.without_gain} rounds in a row promoted no student"
    hours = sum(record.seconds for record in rounds) / 3600
    if stop.hours is not None and hours >= stop.hours:
        return f"{hours:.1f} hours are spent; the limit is {stop.hours:g}"
    money = sum(record.money for record in rounds)
    if stop.money is not None and money >= stop.money:
        return f"{money:.2f} USD are spent on answers; the limit is {stop.money:g}"
    return None
