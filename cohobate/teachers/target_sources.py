"""Target sources: where a phase's soft targets come from, signal stores or live teachers.

A source has two sides. `collate` runs in the data loader and returns what the source needs of a
micro-batch beside its ids. `targets` runs beside the student and returns the soft targets.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cohobate.data.examples import Example, TargetCollator, common_prefix
from cohobate.data.records import Row
from cohobate.data.teacher_prompts import as_teacher_reads, teacher_examples, view_batch
from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs, forward
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.losses.live_teacher import LiveEnsemble, LiveTeacher
from cohobate.losses.soft_targets import SoftTargets
from cohobate.losses.top_k import StoredEnsemble, TopK
from cohobate.models import sharding
from cohobate.models.lm_head import Head, check_head
from cohobate.models.vocabularies import ids_within
from cohobate.teachers.micro_batch import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Ensemble, Progressive
    from cohobate.teachers.signal_store.store import SignalStore


class TargetSource(TargetCollator, Protocol):
    """A source of soft targets."""

    matching: "LayerMatching | None"
    """Feature terms between student and teacher; None with stored signals."""

    progressive: "Progressive | None"
    """Schedule of the teacher's share in the target; None: 1 from the start."""

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The frozen teachers in memory; none with stored signals."""
        ...

    def targets(self, batch: MicroBatch) -> tuple[SoftTargets, ForwardOutputs | None]:
        """Return the soft targets of a micro-batch, and the teacher's outputs for `matching`."""
        ...


class StoredSource:
    """Soft targets read from signal stores, one store for each teacher."""

    matching: "LayerMatching | None" = None

    def __init__(
        self,
        stores: Mapping[str, "SignalStore"],
        ensemble: "Ensemble | None" = None,
        weights: Sequence[float] = (),
        progressive: "Progressive | None" = None,
    ) -> None:
        """Open a source.

        Args:
            stores: one a teacher, by the teachers' names.
            ensemble: how several teachers are combined; None with one.
            weights: weight of each teacher in the ensemble.
            progressive: schedule of the teacher's share.
        """
        self.stores, self.ensemble, self.weights = dict(stores), ensemble, weights
        self.progressive = progressive
        self._index_rows: dict[str, dict[str, int]] = {}

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """None."""
        return []

    def attach(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[Example]:
        """Find the rows in every store.

        Raises:
            UserError: a store has other rows, other token ids, or another tokenizer.
        """
        for name, store in self.stores.items():
            attached = store.attach(examples, tokenizer)
            self._index_rows[name] = {row.key: row.signal for row in attached}
        return list(examples)

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows' signals of each store, as tensors."""
        signals: dict[str, Any] = {
            name: store.read([self._index_rows[name][row.key] for row in rows])
            for name, store in self.stores.items()
        }
        routes = self.ensemble.collate(rows, list(self.stores)) if self.ensemble else {}
        return {"stored": signals} | routes

    def targets(self, batch: MicroBatch) -> tuple[SoftTargets, ForwardOutputs | None]:
        """Return the stored distributions."""
        signals = batch.teacher_inputs["stored"]
        teachers = [store.targets(signals[name]) for name, store in self.stores.items()]
        if self.ensemble is None:
            return teachers[0], None
        top_k = [teacher for teacher in teachers if isinstance(teacher, TopK)]
        if len(top_k) < len(teachers):
            raise UserError(
                "several signal stores can be combined in the form top_k only",
                where="capture.signals",
                fix="capture.signals: {type: top_k, ...}, or live teachers",
            )
        weights_NT = self.ensemble.token_weights(top_k, batch, self.weights)
        return StoredEnsemble(tuple(top_k), weights_NT), None


@dataclass
class LiveSource:
    """Frozen teachers in memory: each runs over the micro-batch's rows, in its own precision.

    Raises:
        UserError: a teacher's logits are not a linear function of its last hidden states.
    """

    models: dict[str, "PreTrainedModel"]
    vocabulary: int
    """Number of ids that the student and all of them share."""
    ensemble: "Ensemble | None" = None
    """How several teachers are combined."""
    weights: Sequence[float] = ()
    """Weight of each teacher, where there are several."""
    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None
    teacher_ids: Mapping[str, Tensor] = field(default_factory=dict)
    """A teacher's id of each of the student's tokens, (V,), where the teacher numbers them
    otherwise (`map_vocabulary`)."""
    prefix_P: Tensor | None = None
    """Tokens that all rows are expected to begin with: a teacher reads them once."""
    tokenizers: "Mapping[str, PreTrainedTokenizerBase]" = field(default_factory=dict)
    """Of each teacher; needed where rows have a prompt that only the teacher reads."""
    views: dict[str, dict[str, Example]] = field(default_factory=dict)
    """For each teacher the rows that it reads behind a prompt of its own (`attach`)."""
    _prefixes: dict[str, Tensor] = field(default_factory=dict)
    _heads: dict[str, Head] = field(default_factory=dict)
    _prefix_caches: dict[str, PrefixCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model in self.models.values():
            check_head(model.eval().requires_grad_(False))

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The teachers."""
        return list(self.models.values())

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Encode the prompts that only the teachers read (`Row.teacher_prompt`).

        Args:
            rows: all rows.
            examples: the rows as the student reads them.

        Raises:
            UserError: an answer has other tokens behind the teacher's prompt; or feature terms
                compare the two models, whose tokens are not the same then.
        """
        for name, tokenizer in self.tokenizers.items():
            numbers = self._numbers(name)
            if views := teacher_examples(tokenizer, rows, examples, numbers):
                self.views[name] = views
                read = [as_teacher_reads(views, row, numbers) for row in examples]
                self._prefixes[name] = common_prefix(read)
        if self.views and self.matching:
            raise UserError(
                "feature terms compare states at the same tokens, and the teacher reads a prompt "
                "of its own",
                where=f"row {next(iter(next(iter(self.views.values()))))}, teacher_prompt",
                fix="leave the feature terms out, or the teacher_prompt",
            )

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return which teacher each row goes to, where the ensemble chooses by row.

        Where a teacher reads prompts of its own, also all rows as it reads them.
        """
        routes = self.ensemble.collate(rows, list(self.models)) if self.ensemble else {}
        if not self.views:
            return routes
        views = self.views.items()
        return routes | {"views": {n: view_batch(v, rows, self._numbers(n)) for n, v in views}}

    def _numbers(self, name: str) -> "np.ndarray[Any, Any] | None":
        return self.teacher_ids[name].numpy() if name in self.teacher_ids else None

    def targets(self, batch: MicroBatch) -> tuple[SoftTargets, ForwardOutputs | None]:
        """Run the teachers and return their hidden states at the completion tokens."""
        if self.ensemble is None:
            (name,) = self.models
            return self._forward(name, batch, None)
        route_B = batch.teacher_inputs.get("route_B")
        teachers = []
        for number, name in enumerate(self.models):
            chosen_B = None if route_B is None else route_B == number
            teachers.append(self._forward(name, batch, chosen_B)[0])
        weights_NT = self.ensemble.token_weights(teachers, batch, self.weights)
        return LiveEnsemble(tuple(teachers), weights_NT, self.ensemble.average), None

    @torch.no_grad()
    def _forward(
        self, name: str, batch: MicroBatch, chosen_B: Tensor | None
    ) -> tuple[LiveTeacher, ForwardOutputs]:
        """Run one teacher, over the chosen rows alone; the other rows' states are zeros."""
        model, ids_BS = self.models[name], batch.ids_BS
        if model.device != ids_BS.device:
            model.to(ids_BS.device)  # type: ignore[arg-type]
        if name not in self._heads:
            self._heads[name] = self._head(name)
            prefix_P = self._prefixes.get(name)
            if prefix_P is None and self.prefix_P is not None:
                prefix_P = self._to_teacher_ids(name, self.prefix_P)
            if prefix_P is not None:
                # made at the first batch, when the model is on its device
                self._prefix_caches[name] = PrefixCache(model, prefix_P)
        if view := batch.teacher_inputs.get("views", {}).get(name):
            # the same rows and completion tokens, each behind the prompt that the teacher reads
            batch = batch._replace(**view)
            ids_BS = batch.ids_BS
        else:
            ids_BS = self._to_teacher_ids(name, ids_BS)
        parts = self.matching.parts if self.matching else frozenset()
        positions_N, chosen_N, idle = batch.positions_N, None, False
        if chosen_B is not None:
            # the other rows are left out of the pass
            chosen_N, positions_N = chosen_B[batch.row_N], _positions_among(chosen_B, batch)
            # a pass of a sharded teacher gathers its weights: workers without a row for it run one
            idle = sharding.is_sharded(model) and not chosen_B.any()
            if idle:
                chosen_B = torch.arange(len(ids_BS), device=ids_BS.device) == 0
                positions_N = positions_N.new_tensor([ids_BS.shape[1] - 1])
            ids_BS = ids_BS[chosen_B]
        if len(ids_BS):
            # a frozen teacher runs in the format that it was loaded in, whatever the student does
            with torch.autocast(ids_BS.device.type, enabled=False):
                outputs = forward(model, ids_BS, positions_N, parts, self._prefix_caches.get(name))
        else:
            width = self._heads[name].weight_VD.shape[1]
            outputs = ForwardOutputs(torch.empty(0, width, dtype=model.dtype, device=ids_BS.device))
        if sharding.is_sharded(model):
            # whole since its pass; before, each worker had its share alone
            self._heads[name] = self._head(name)
        hidden_ND = outputs.last_hidden_ND[:0] if idle else outputs.last_hidden_ND
        if chosen_N is not None:
            # back to all N tokens: hidden states are in the order of the chosen ones
            all_ND = hidden_ND.new_zeros(len(chosen_N), hidden_ND.shape[-1])
            hidden_ND = all_ND.masked_scatter(chosen_N[:, None], hidden_ND)
        return LiveTeacher(hidden_ND, self._heads[name]), outputs

    def _to_teacher_ids(self, name: str, ids: Tensor) -> Tensor:
        """Return the student's ids as a teacher numbers them."""
        return self.teacher_ids[name].to(ids.device)[ids] if name in self.teacher_ids else ids

    def _head(self, name: str) -> Head:
        """Return a teacher's head over the student's ids.

        Where these are a part of the teacher's, the distribution is conditional on that part.
        """
        if name not in self.teacher_ids:
            return Head.of(self.models[name], self.vocabulary)
        head = Head.of(self.models[name])
        ids_V = self.teacher_ids[name].to(head.weight_VD.device)
        bias_V = None if head.bias_V is None else head.bias_V[ids_V]
        # a packed layer has all ids: it cannot be used here
        return replace(head, weight_VD=head.weight_VD[ids_V], bias_V=bias_V, packed=None)


def _positions_among(chosen_B: Tensor, batch: MicroBatch) -> Tensor:
    """Return the positions of the chosen rows' completion tokens once other rows are left out."""
    new_B = chosen_B.long().cumsum(0) - 1  # the number that each chosen row gets
    row_N, width = batch.row_N, batch.ids_BS.shape[1]
    positions_N = new_B[row_N] * width + batch.positions_N % width
    return positions_N[chosen_B[row_N]]


def map_vocabulary(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", teacher_name: str
) -> tuple[int, Tensor | None]:
    """Return how many of the student's ids a teacher has, and the teacher's id of each.

    The second is (V,), and None where both number the tokens alike. A student whose vocabulary was
    trimmed numbers them otherwise.

    Raises:
        UserError: an id stands for different strings in the two vocabularies, and the teacher lacks
            some of the student's tokens.
    """
    ids = ids_within(teacher.get_vocab(), student.get_vocab())
    # alike or unrelated: compared id by id, with an error that names the first id that differs
    if ids is None or (ids < 0).any() or (ids == np.arange(len(ids))).all():
        return shared_vocabulary(student, teacher, teacher_name), None
    return len(ids), torch.from_numpy(ids)


def shared_vocabulary(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", teacher_name: str
) -> int:
    """Return how many ids, from 0, both tokenizers have; each must mean the same string to both.

    Raises:
        UserError: an id is another string to the teacher.
    """
    vocabularies = [{n: text for text, n in t.get_vocab().items()} for t in (student, teacher)]
    count = min(map(len, vocabularies))
    for number in range(count):
        student_text, teacher_text = (texts.get(number) for texts in vocabularies)
        if student_text != teacher_text:
            raise UserError(
                f"id {number} is {student_text!r} to the student and {teacher_text!r} to the "
                "teacher",
                where=teacher_name,
                fix="a term {type: uld} compares models of two tokenizers; or train on its text",
            )
    return count


def check_ids(examples: Sequence[Example], vocabulary: int) -> None:
    """Check that rows have no token beyond the ids that all models share.

    Raises:
        UserError: a row has one; names the row.
    """
    for row in examples:
        if row.ids.max() >= vocabulary:
            raise UserError(
                f"token {int(row.ids.max())} is not among the {vocabulary} ids that both share",
                where=f"row {row.key}",
            )
