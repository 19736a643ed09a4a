"""The file of a search: which keys of params.yaml to vary, in what ranges, within what budget.

space:
  train.kd.learning_rate: {low: 5.0e-4, high: 4.0e-3, log: true}
  init_student.layers: {any_of: [[0, 1, 29], [0, 1, 2, 3, 29]]}
  method:                                    # a name of your own for several keys at once
    settings:
      soft: {}
      hard: {train.kd.method: sft, train.kd.targets: data/curriculum/train.jsonl}
budget: {trials: 24, hours: 2}
at_once: 2
prune: {type: median}                        # by train.kd.dev
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate import params
from cohobate.params import ParamsError, Section
from flows import overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

Settings = dict[str, Any]
"""Values by the dotted key of params.yaml."""


class Range(Section):
    """Numbers from `low` to `high`; whole ones where both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether the logarithm is drawn evenly, as for learning rates."""

    @model_validator(mode="after")
    def _ascending(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 where log is true")
        return self

    def distribution(self) -> "BaseDistribution":
        """Return what Optuna draws from."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(float(self.low), float(self.high), log=self.log)

    def settings(self, key: str, drawn: Any) -> Settings:
        """Return the value that was drawn; three digits say enough, and fit into a name."""
        return {key: drawn if isinstance(drawn, int) else float(f"{drawn:.3g}")}

    def extremes(self) -> Iterator[Any]:
        """Yield values with which the key can be tried."""
        yield from (self.low, self.high)


class AnyOf(Section):
    """One of some values, which may be lists or mappings."""

    any_of: list[Any] = Field(min_length=1)

    def distribution(self) -> "BaseDistribution":
        """Return what Optuna draws from: the values as JSON."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([json.dumps(value) for value in self.any_of])

    def settings(self, key: str, drawn: Any) -> Settings:
        """Return the value that was drawn."""
        return {key: json.loads(drawn)}

    def extremes(self) -> Iterator[Any]:
        """Yield every value."""
        yield from (json.dumps(value) for value in self.any_of)


class Variants(Section):
    """One of some named sets of keys, such as methods."""

    settings_by_name: dict[str, Settings] = Field(alias="settings", min_length=1)

    def distribution(self) -> "BaseDistribution":
        """Return what Optuna draws from: the names."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([*self.settings_by_name])

    def settings(self, key: str, drawn: Any) -> Settings:
        """Return the keys of the variant that was drawn."""
        return self.settings_by_name[drawn]

    def extremes(self) -> Iterator[Any]:
        """Yield every name."""
        yield from self.settings_by_name


Dimension = Range | AnyOf | Variants


class SearchBudget(Section):
    """When the search ends: at the first limit that is reached."""

    trials: int = Field(24, ge=1)
    """Trials, that of the params as they are included."""
    hours: float | None = Field(None, gt=0)
    """Hours in which new trials start, over all runs of this search."""
    money: float | None = Field(None, gt=0)
    """US dollars that the teachers' ledgers may grow by."""


class MedianPruning(Section):
    """A trial ends where its best score on dev so far is below the median of the others then."""

    type: Literal["median"]
    trials: int = Field(4, ge=1)
    """Trials that must have ended before."""
    begin: float = Field(0.25, ge=0, lt=1)
    """Share of the training before which none ends."""

    def pruner(self) -> "BasePruner":
        """Return Optuna's; steps are in per cent of the training."""
        from optuna.pruners import MedianPruner

        return MedianPruner(self.trials, n_warmup_steps=round(100 * self.begin))


class HalvingPruning(Section):
    """Successive halving (Li et al. 2018, ASHA): at each rung the best share of the trials goes on.

    Rungs are at `begin` of the training, at `factor` times as much, and so on.
    """

    type: Literal["halving"]
    begin: float = Field(0.25, gt=0, lt=1)
    """Share of the training at the first rung."""
    factor: int = Field(2, ge=2)
    """One of so many trials goes on."""

    def pruner(self) -> "BasePruner":
        """Return Optuna's; steps are in per cent of the training."""
        from optuna.pruners import SuccessiveHalvingPruner

        first = max(1, round(100 * self.begin))
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=self.factor)


Pruning = Annotated[MedianPruning | HalvingPruning, Field(discriminator="type")]


class Search(Section):
    """The content of a search's file."""

    space: dict[str, Dimension] = Field(min_length=1)
    """What to vary: a dotted key of params.yaml with its values, or a name with variants."""
    recipe: str = ""
    """A recipe for all trials."""
    settings: Settings = Field(default_factory=dict)
    """Values for all trials, such as fewer rows: `{collect.split.unlabelled: 2000}`."""
    budget: SearchBudget = SearchBudget()
    at_once: int = Field(1, ge=1)
    """Trials at a time. They share the machine's, or the cluster's, processors."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How values are chosen: by the trials before (tree-structured Parzen estimator, Bergstra et
    al. 2011), or at random."""
    seed: int = Field(0, ge=0)
    prune: Pruning | None = None
    """End poor trials early, by their scores on dev rows while the student trains: `{type: median}`
    or `{type: halving}`. The student's phase needs `dev`. None when not given."""

    def what_is_tried(self) -> str:
        """Return all but the budget as text: trials of another space do not belong together."""
        kept = self.model_dump(mode="json", by_alias=True, exclude={"budget", "at_once", "prune"})
        return json.dumps(kept, sort_keys=True)

    def settings_of(self, drawn: Mapping[str, Any]) -> Settings:
        """Return the settings of a trial for what was drawn of each dimension."""
        chosen: Settings = {}
        for key, dimension in self.space.items():
            if key in drawn:
                chosen |= dimension.settings(key, drawn[key])
        return chosen

    def label(self, drawn: Mapping[str, Any]) -> str:
        """Return what a trial tries in a few words: `learning_rate=0.001 layers=[0, 29]`."""
        if not drawn:
            return "params.yaml as it is"
        words = []
        for key, dimension in self.space.items():
            value = drawn[key]
            if not isinstance(dimension, Variants):
                value = dimension.settings(key, value)[key]
            words.append(f"{key.rpartition('.')[2]}={value}")
        return " ".join(words)


def read(path: Path) -> Search:
    """Read the file of a search.

    Raises:
        ParamsError: it is not there, or has keys or values that no search has.
    """
    try:
        document = params.parse(path.read_text(), str(path))
    except FileNotFoundError:
        raise ParamsError(
            "there is no such file", where=str(path), fix="docs/search.md has an example"
        ) from None
    try:
        return params.validated(Search, document, "search")  # type: ignore[no-any-return]
    except ParamsError as error:
        raise ParamsError(
            error.what, where=str(path), fix="docs/search.md has an example"
        ) from None


def check(search: Search, root: Path, path: Path) -> None:
    """Try every key of a search by itself on the params of the project at `root`.

    Raises:
        ParamsError: a key is none of params.yaml, or a value is refused there.
    """
    attempts: list[tuple[str, Settings]] = [("settings", {})]
    for key, dimension in search.space.items():
        attempts += [(key, dimension.settings(key, value)) for value in dimension.extremes()]
    for key, settings in attempts:
        try:
            with overrides.temporarily(root, as_options(search.settings | settings), search.recipe):
                if search.prune:
                    _check_dev(params.load(root / params.PARAMS))
        except ParamsError as error:
            raise ParamsError(error.what, where=f"{path}: {key}", fix=error.fix) from None


def _check_dev(document: Mapping[str, Any]) -> None:
    """Refuse to prune trials whose student is not scored while it trains."""
    student = document["evaluate"]["student"]
    checks = document["train"][student].get("dev")
    if not checks or checks.get("by", "score") != "score":
        problem = "is checked by its loss" if checks else "has no dev"
        raise ParamsError(
            f"prune compares scores on dev rows, and the phase {student} {problem}",
            fix=f"settings: {{train.{student}.dev: {{every: 20}}}} in the search's file",
        )


def as_options(settings: Settings) -> list[str]:
    """Return settings as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
