"""Cost of a round in time and money, savings when serving, and the break-even volume.

Seconds and speeds are those of this machine, prices are params: nothing here is hashed.
`reports/cost.json` is written with the report, from data/evaluate/served.json (tokens),
reports/stages.json (seconds) and reports/timings.json (speed).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cohobate.data.records import EVALUATE, REPORTS
from cohobate.params import Section

TOKEN_COUNTS = EVALUATE / "served.json"
COST = REPORTS / "cost.json"


class Prices(Section):
    """Prices: assumptions, not measurements."""

    currency: str = "USD"
    """Currency of all prices."""
    machine_hour: float = Field(0.10, ge=0)
    """An hour of the machine that distils and serves."""
    teacher_million_in: float = Field(0.0, ge=0)
    """A million prompt tokens of a teacher behind an API; if both are 0: generate.backend.price."""
    teacher_million_out: float = Field(0.0, ge=0)
    """A million generated tokens. 0: the teacher runs on the machine itself."""
    grams_per_kwh: float | None = Field(None, ge=0)
    """Carbon intensity of the electricity, in grams of CO2-equivalent a kilowatt-hour, such as 56
    in France or 480 as a world mean: then carbon stands beside energy, where a meter gives it."""

    def completed(self, price: Mapping[str, float] | None) -> "Prices":
        """Return the prices, with those of the teacher's service where none are given here."""
        if self.teacher_million_in or self.teacher_million_out or not price:
            return self
        teacher = {"teacher_million_in": price["input"], "teacher_million_out": price["output"]}
        return self.model_copy(update=teacher)

    def cost_of_round(
        self,
        served: Mapping[str, Any],
        stages: Mapping[str, Mapping[str, Any]],
        timings: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the cost of the round and of a million tokens, and the break-even volume.

        The cost of the teacher's tokens is None where its weights are not here and it has no price.
        """
        # once: the price is taken out of `served` for the second call
        if (priced := self.completed(served.get("price"))) != self:
            return priced.cost_of_round({**served, "price": None}, stages, timings)
        seconds = {
            name: stage.get("own_seconds", stage["seconds"]) for name, stage in stages.items()
        }
        taught = served["taught"]
        tokens_cost = (
            taught["prompt_tokens"] * self.teacher_million_in
            + taught["answer_tokens"] * self.teacher_million_out
        ) / 1e6
        machine_cost = sum(seconds.values()) / 3600 * self.machine_hour
        speed = {name: model["tokens_per_second"] for name, model in timings["models"].items()}
        # USD an hour / tokens a second, as USD a million tokens
        million = {name: self.machine_hour / 3600 / s * 1e6 for name, s in speed.items()}
        answer = served["request"]["answer_tokens"]
        if answer and (self.teacher_million_in or self.teacher_million_out):
            # a service charges prompts too: their share of each generated token
            prompts = served["request"]["prompt_tokens"] / answer * self.teacher_million_in
            million["teacher"] = self.teacher_million_out + prompts
        judged = float(served.get("judged", 0.0))
        saved = (million["teacher"] - million["student"]) / 1e6 if "teacher" in million else 0.0
        # tokens after which the savings equal the cost of the round; never, where serving saves
        # nothing
        even = (machine_cost + tokens_cost + judged) / saved if saved > 0 else None
        return {
            "currency": self.currency,
            "prices": self.model_dump(exclude_none=True),
            "seconds": round(sum(seconds.values()), 1),
            "machine_cost": _money(machine_cost),
            "teacher_tokens": taught,
            "teacher_tokens_cost": _money(tokens_cost),
            "cost": _money(machine_cost + tokens_cost + judged),
            **({"judges_cost": _money(judged)} if judged else {}),
            **self._carbon(timings),
            "cost_per_million_tokens": {"teacher": None}
            | {name: _money(cost) for name, cost in million.items()},
            "break_even_tokens": None if even is None else round(even),
            "break_even_requests": None if even is None or not answer else round(even / answer),
            "answer_tokens": answer,
        }

    def _carbon(self, timings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the grams of a million generated tokens; nothing where no energy is known."""
        joules = timings.get("energy", {}).get("joules_per_token")
        if self.grams_per_kwh is None or not joules:
            return {}
        # joules a token are joules of a million / 1e6; 3.6e6 joules are a kilowatt-hour
        return {
            "grams_per_million_tokens": {
                name: _money(each * 1e6 / 3.6e6 * self.grams_per_kwh)
                for name, each in joules.items()
            }
        }


def cost_per_kept_point(tokens_cost: float, retention: float | None) -> dict[str, float]:
    """Return the cost of the teacher's tokens for each point of its score that the student keeps.

    A point is one per cent of the teacher's score. Nothing where the tokens cost no money, or the
    student keeps nothing that is known.
    """
    if not (tokens_cost and retention and retention > 0):
        return {}
    return {"teacher_cost_per_kept_point": _money(tokens_cost / (100 * retention))}


def _money(amount: float) -> float:
    return float(f"{amount:.4g}")
