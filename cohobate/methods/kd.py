"""Off-policy distillation: from teachers' distributions and hidden states, on given text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.fast.frozen import load_frozen
from cohobate.losses.divergences import Hard, Term
from cohobate.losses.feature_losses import Attention, Feature, FeatureTerm
from cohobate.losses.uld import Uld
from cohobate.methods.phase import Phase, PhaseResult, checkpoint_path
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.teachers.ensembles import Ensemble, Mixture, Progressive

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.teachers.cross_tokenizer import (
        CrossTokenizerSource,
        StoredCrossTokenizerSource,
    )
    from cohobate.teachers.label_source import StoredLabelSource
    from cohobate.teachers.target_sources import LiveSource, StoredSource

Share = Annotated[float, Field(gt=0)]


class Kd(Phase):
    """Divergences from the teacher, features, and cross-entropy of the answers, weighted."""

    method: Literal["kd"]
    terms: tuple[
        Annotated[Term | Uld | FeatureTerm, Field(discriminator="type")], ...  # type: ignore[valid-type]
    ] = Field(min_length=1)
    """The loss is their weighted sum, per completion token."""
    teachers: dict[str, Share] | None = Field(None, min_length=1)
    """Several teachers: the folders below `targets`, and the weight of each."""
    combine: Ensemble = Mixture()
    """How several teachers are combined into one target."""
    teacher_precision: Precision = "auto"
    """Number format in which live teachers run."""
    progressive: Progressive | None = None
    """Let the target move towards the teacher's."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The terms that compare hidden states, attention or values."""
        return tuple(term for term in self.terms if isinstance(term, Feature))

    @property
    def responses(self) -> tuple[Term | Uld, ...]:
        """The terms that compare distributions over the vocabulary."""
        return tuple(term for term in self.terms if not isinstance(term, Feature))

    @property
    def live_terms(self) -> tuple[str, ...]:
        """The terms that need a live teacher."""
        return tuple(term.type for term in self.features)

    @property
    def crosses_tokenizers(self) -> bool:
        """Whether the teacher may have another tokenizer than the student: `uld` aligns the two."""
        return any(isinstance(term, Uld) for term in self.terms)

    @model_validator(mode="after")
    def _attends_eagerly_where_maps_are_compared(self) -> "Kd":
        if self.attention != "eager" and any(isinstance(t, Attention) for t in self.terms):
            raise ValueError("attention maps need `attention: eager`")
        return self

    @model_validator(mode="after")
    def _aligns_whole_rows(self) -> "Kd":
        if self.crosses_tokenizers and self.too_long != "drop":
            raise ValueError("uld aligns whole rows with the teacher's: too_long must be drop")
        return self

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train against the teacher or teachers in `targets`: checkpoints, or signal stores."""
        from cohobate.teachers.label_source import StoredLabelSource
        from cohobate.teachers.signal_store.missing import without_missing
        from cohobate.teachers.target_sources import LiveSource
        from cohobate.training.trainer import fit

        # rows that a served teacher has no signals of
        examples = without_missing(
            self.teacher_folders(seed).values(), self.examples(tokenizer, rows)
        )
        target_source = self.target_source(model, tokenizer, rows, examples, seed)
        if isinstance(target_source, StoredLabelSource):
            examples = target_source.attach(rows, examples, tokenizer)
        history = fit(
            model,
            examples,
            self.responses,
            self,
            seed=seed,
            label=label,
            target_source=target_source,
            # with a live teacher the ids of both; its head may be padded to another width
            vocabulary=target_source.vocabulary
            if isinstance(target_source, LiveSource)
            else len(tokenizer),
        )
        notes = target_source.matching.report() if target_source.matching else {}
        return PhaseResult(history, len(examples), notes)

    def target_source(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        examples: "Sequence[Example]",
        seed: int,
    ) -> (
        "StoredSource | StoredLabelSource | LiveSource | CrossTokenizerSource"
        " | StoredCrossTokenizerSource"
    ):
        """Open the targets of one seed.

        Raises:
            UserError: they do not fit the student or the rows, or the terms need others.
        """
        from cohobate.teachers.signal_store.label_store import is_label_store

        folders = self.teacher_folders(seed)
        if any(map(is_label_store, folders.values())):
            return self._stored_labels(folders)
        # a model has config.json, a signal store has signals.json
        if all((folder / "config.json").is_file() for folder in folders.values()):
            if self.crosses_tokenizers:
                return self._cross_tokenizer(folders, tokenizer, rows, examples)
            source = self._live(folders, model, tokenizer, examples, seed)
            source.attach(rows, examples)
            return source
        if not all((folder / "signals.json").is_file() for folder in folders.values()):
            raise UserError(
                "neither teachers' checkpoints nor signal stores",
                where=", ".join(map(str, folders.values())),
                fix="targets: models/adapt/<teacher>, models/train/<phase> or "
                "data/capture/<teacher>; the folder above and `teachers` for several",
            )
        if self.crosses_tokenizers:
            return self._stored_cross_tokenizer(folders, tokenizer, rows, examples)
        return self._stored(folders, tokenizer, examples)

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format student and live teachers run on this machine."""
        if not self.targets.startswith("models/"):
            return super().number_formats()
        teachers = resolve(self.teacher_precision, checkpoints.accelerator())
        return super().number_formats() | {"teachers": teachers}

    def teacher_folders(self, seed: int) -> dict[str, Path]:
        """Return the folder of each teacher; that of an earlier phase is of the same seed."""
        above = Path(self.targets)
        named = {name: above / name for name in self.teachers} if self.teachers else {}
        folders = named or {above.name: above}
        return {name: checkpoint_path(folder, seed) for name, folder in folders.items()}

    def _stored(
        self,
        folders: Mapping[str, Path],
        tokenizer: "PreTrainedTokenizerBase",
        examples: "Sequence[Example]",
    ) -> "StoredSource":
        from cohobate.teachers.signal_store.store import SignalStore
        from cohobate.teachers.target_sources import StoredSource

        for term in self.live_terms:
            raise self.needs_live(term)
        # stores hold a part of each distribution. Forward KL has a gradient that is linear in the
        # target, so that of the mixture is the weighted mean of the teachers'; other divergences
        # need the mixture itself
        soft = [term.type for term in self.responses if term.type not in ("hard", "forward_kl")]
        if (
            self.teachers
            and not self.combine.one_teacher_per_row
            and (soft or self._mean_of_logits)
        ):
            raise self.needs_live(f"combine: {self.combine.type} with {', '.join(soft) or 'this'}")
        stores = {name: SignalStore(folder) for name, folder in folders.items()}
        for store in stores.values():
            store.check_terms(self.responses)
        source = StoredSource(stores, **self._ensemble)
        source.attach(examples, tokenizer)
        return source

    def _stored_labels(self, folders: Mapping[str, Path]) -> "StoredLabelSource":
        """Return the source of distributions over labels: one teacher's, or the mean of several."""
        from cohobate.teachers.label_source import StoredLabelSource
        from cohobate.teachers.signal_store.label_mean import MeanLabelStore
        from cohobate.teachers.signal_store.label_store import LabelStore

        for term in self.live_terms:
            raise self.needs_live(term)
        if self.crosses_tokenizers or not self.averages_labels:
            raise UserError(
                "signals of labels are averaged over teachers, and need no uld",
                where=", ".join(map(str, folders.values())),
                fix="combine: {type: mixture}; terms: [{type: forward_kl}]",
            )
        stores = [LabelStore(folder) for folder in folders.values()]
        temperatures = [getattr(term, "softmax_temperature", 1.0) for term in self.responses]
        if not self.teachers:
            return StoredLabelSource(stores[0], temperatures, self.progressive)
        mean = MeanLabelStore(stores, [*self.teachers.values()], self.combine.average)
        return StoredLabelSource(mean, temperatures, self.progressive)

    @property
    def averages_labels(self) -> bool:
        """Whether distributions over labels can be combined so: by a mean, or there is only one."""
        return not self.teachers or self.combine.type in ("mixture", "mean_logits")

    @property
    def _mean_of_logits(self) -> bool:
        return self.combine.average == "logits"

    @property
    def _ensemble(self) -> dict[str, Any]:
        options: dict[str, Any] = {"progressive": self.progressive}
        if self.teachers:
            options |= {"ensemble": self.combine, "weights": tuple(self.teachers.values())}
        return options

    def _cross_tokenizer(
        self,
        folders: Mapping[str, Path],
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        examples: "Sequence[Example]",
    ) -> "CrossTokenizerSource":
        from cohobate.teachers.cross_tokenizer import CrossTokenizerSource

        teacher, theirs = self._load(self._crossed_folder(folders))
        source = CrossTokenizerSource(teacher, theirs, tokenizer)
        source.attach(rows, examples)
        return source

    def _stored_cross_tokenizer(
        self,
        folders: Mapping[str, Path],
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        examples: "Sequence[Example]",
    ) -> "StoredCrossTokenizerSource":
        from cohobate.teachers.cross_tokenizer import StoredCrossTokenizerSource
        from cohobate.teachers.signal_store.store import SignalStore

        store = SignalStore(self._crossed_folder(folders))
        store.check_terms(self.responses)
        source = StoredCrossTokenizerSource(store, tokenizer)
        source.attach(rows, examples)
        return source

    def _crossed_folder(self, folders: Mapping[str, Path]) -> Path:
        """Return the folder of the one teacher, of another tokenizer."""
        # other divergences need one vocabulary
        others = [t.type for t in self.terms if not isinstance(t, Uld | Hard)]
        if others or len(folders) > 1 or self.progressive:
            raise UserError(
                "uld needs one teacher, and goes with hard terms alone",
                where=", ".join([*others, *map(str, folders.values())]),
            )
        (folder,) = folders.values()
        return folder

    def _load(self, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        return load_frozen(
            folder,
            precision=self.teacher_precision,
            attention="eager" if self.attention == "eager" else "sdpa",
            device=checkpoints.accelerator(),
            sharded=self.shards,
        )

    def needs_live(self, term: str) -> UserError:
        """Return the error of a term that needs a live teacher, and has stored signals."""
        return UserError(
            f"{term} needs a live teacher, not stored signals",
            where=f"targets: {self.targets}",
            fix="targets: models/adapt/<teacher>",
        )

    def _live(
        self,
        folders: Mapping[str, Path],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        examples: "Sequence[Example]",
        seed: int,
    ) -> "LiveSource":
        from cohobate.data.examples import common_prefix
        from cohobate.losses.layer_matching import LayerMatching
        from cohobate.teachers.target_sources import LiveSource, check_ids, map_vocabulary

        if self.features and len(folders) > 1:
            raise UserError(f"{self.features[0].type} needs one teacher, not several")
        loaded = {name: self._load(folder) for name, folder in folders.items()}
        vocabularies = {
            name: map_vocabulary(tokenizer, theirs, str(folders[name]))
            for name, (_, theirs) in loaded.items()
        }
        # the ids that all teachers have; `check_ids` refuses rows with others
        vocabulary = min(count for count, _ in vocabularies.values())
        check_ids(examples, vocabulary)
        teachers = {name: teacher for name, (teacher, _) in loaded.items()}
        matching = None
        if self.features:
            matching = LayerMatching(self.features, model, next(iter(teachers.values())), seed)
        # None: the teacher numbers its tokens as the student does
        teacher_ids = {name: ids for name, (_, ids) in vocabularies.items() if ids is not None}
        return LiveSource(
            teachers,
            vocabulary,
            matching=matching,
            teacher_ids=teacher_ids,
            prefix_P=common_prefix(examples),
            tokenizers={name: theirs for name, (_, theirs) in loaded.items()},
            **self._ensemble,
        )
