"""Where a phase's targets come from: stored signals or live teachers, one or several.

A source has two sides. `bring` runs where rows are read, and gives what a micro-batch needs beside
its own ids; `teach` runs beside the student, and gives what the student is to predict.

Shapes: B batch, S sequence, P tokens of a beginning, N valid tokens, D width, M teachers.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cohobate.data.examples import Example, TargetCollator
from cohobate.errors import UserError
from cohobate.fast.forward import ForwardOutputs, forward
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.losses.targets import LiveEnsemble, LiveTeacher, StoredEnsemble, Teacher, TopK
from cohobate.models.lm_head import Head, check_head
from cohobate.models.vocabularies import ids_within

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Ensemble, Progressive
    from cohobate.teachers.signal_store.store import SignalStore


class MicroBatch(NamedTuple):
    """One micro-batch as the student reads it."""

    ids_BS: Tensor
    positions_N: Tensor
    labels_N: Tensor
    teacher_inputs: Mapping[str, Any]
    """What `bring` gave of it."""

    @property
    def row_N(self) -> Tensor:  # noqa: N802
        """Number of the row that each valid token belongs to."""
        return self.positions_N // self.ids_BS.shape[1]


class TargetSource(TargetCollator, Protocol):
    """A source of targets."""

    matching: "LayerMatching | None"
    """What of the teacher's inside is compared; None with stored signals."""

    progressive: "Progressive | None"
    """How the target moves towards the teacher's; None: it is the teacher's from the start."""

    def targets(self, batch: MicroBatch) -> tuple[Teacher, ForwardOutputs | None]:
        """Return the targets of the valid tokens, and what the teacher's pass shows."""
        ...


class StoredSource:
    """Signal stores, one a teacher."""

    matching: "LayerMatching | None" = None

    def __init__(
        self,
        stores: Mapping[str, "SignalStore"],
        ensemble: "Ensemble | None" = None,
        shares: Sequence[float] = (),
        progressive: "Progressive | None" = None,
    ) -> None:
        self.stores, self.ensemble, self.shares = dict(stores), ensemble, shares
        self.progressive = progressive
        self._places: dict[str, dict[str, int]] = {}

    def attach(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[Example]:
        """Find the rows in every store.

        Raises:
            UserError: a store is of other rows, ids, or another tokenizer.
        """
        for name, store in self.stores.items():
            found = store.attach(examples, tokenizer)
            self._places[name] = {row.key: row.signal for row in found}
        return list(examples)

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows' signals of each store, as tensors."""
        found: dict[str, Any] = {
            name: store.read([self._places[name][row.key] for row in rows])
            for name, store in self.stores.items()
        }
        routes = self.ensemble.routes_of(rows, list(self.stores)) if self.ensemble else {}
        return {"stored": found} | routes

    def targets(self, batch: MicroBatch) -> tuple[Teacher, ForwardOutputs | None]:
        """Return the stored distributions."""
        teacher_inputs = batch.teacher_inputs["stored"]
        told = [store.targets(teacher_inputs[name]) for name, store in self.stores.items()]
        if self.ensemble is None:
            return told[0], None
        tops = [teacher for teacher in told if isinstance(teacher, TopK)]
        if len(tops) < len(told):
            fix = "capture.signals: {type: top_k, ...}, or live teachers"
            raise UserError("several stores are combined in the form top_k alone", fix=fix)
        return StoredEnsemble(tuple(tops), self.ensemble.weights(tops, batch, self.shares)), None


@dataclass
class LiveSource:
    """Frozen teachers at hand: each runs over the micro-batch's rows, in its own precision."""

    models: dict[str, "PreTrainedModel"]
    vocabulary: int
    """Number of ids that the student and all of them share."""
    ensemble: "Ensemble | None" = None
    shares: Sequence[float] = ()
    """Weight of each teacher, where there are several."""
    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None
    teacher_ids: Mapping[str, Tensor] = field(default_factory=dict)
    """The id that a teacher gives each of the student's, where these are numbered otherwise."""
    prefix_P: Tensor | None = None
    """What all rows are expected to begin with: a teacher reads it once."""
    _heads: dict[str, Head] = field(default_factory=dict)
    _beginnings: dict[str, PrefixCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model in self.models.values():
            check_head(model.eval().requires_grad_(False))

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return which teacher each row goes to, where that is a choice of the rows."""
        return self.ensemble.routes_of(rows, list(self.models)) if self.ensemble else {}

    def targets(self, batch: MicroBatch) -> tuple[Teacher, ForwardOutputs | None]:
        """Run the teachers and return their hidden rows at the valid tokens."""
        if self.ensemble is None:
            (name,) = self.models
            return self._pass(name, batch, None)
        route_B = batch.teacher_inputs.get("route_B")
        told = []
        for number, name in enumerate(self.models):
            chosen_B = None if route_B is None else route_B == number
            told.append(self._pass(name, batch, chosen_B)[0])
        weights_NT = self.ensemble.weights(told, batch, self.shares)
        return LiveEnsemble(tuple(told), weights_NT, self.ensemble.averages), None

    @torch.no_grad()
    def _pass(
        self, name: str, batch: MicroBatch, chosen_B: Tensor | None
    ) -> tuple[LiveTeacher, ForwardOutputs]:
        model, ids_BS = self.models[name], batch.ids_BS
        if model.device != ids_BS.device:
            model.to(ids_BS.device)  # type: ignore[arg-type]
        if name not in self._heads:
            self._heads[name] = self._head(name)
            if self.prefix_P is not None:
                self._beginnings[name] = PrefixCache(model, self._as_numbered(name, self.prefix_P))
        ids_BS = self._as_numbered(name, ids_BS)
        parts = self.matching.parts if self.matching else frozenset()
        at_N, here_N = batch.positions_N, None
        if chosen_B is not None:
            here_N, at_N = chosen_B[batch.row_N], _among(chosen_B, batch)
            ids_BS = ids_BS[chosen_B]
        if len(ids_BS):
            with torch.autocast(ids_BS.device.type, enabled=False):
                seen = forward(model, ids_BS, at_N, parts, self._beginnings.get(name))
        else:
            width = self._heads[name].weight_VD.shape[1]
            seen = ForwardOutputs(torch.empty(0, width, dtype=model.dtype, device=ids_BS.device))
        hidden_ND = seen.last_ND
        if here_N is not None:
            whole_ND = hidden_ND.new_zeros(len(here_N), hidden_ND.shape[-1])
            hidden_ND = whole_ND.masked_scatter(here_N[:, None], hidden_ND)
        return LiveTeacher(hidden_ND, self._heads[name]), seen

    def _as_numbered(self, name: str, ids: Tensor) -> Tensor:
        """Return the student's ids as a teacher numbers them."""
        return self.teacher_ids[name].to(ids.device)[ids] if name in self.teacher_ids else ids

    def _head(self, name: str) -> Head:
        """Return a teacher's head over the student's ids.

        Where these are some of its own, the distribution is its own given that it says one of them.
        """
        if name not in self.teacher_ids:
            return Head.of(self.models[name], self.vocabulary)
        head = Head.of(self.models[name])
        ids_V = self.teacher_ids[name].to(head.weight_VD.device)
        bias_V = None if head.bias_V is None else head.bias_V[ids_V]
        return replace(head, weight_VD=head.weight_VD[ids_V], bias_V=bias_V, packed=None)


def _among(chosen_B: Tensor, batch: MicroBatch) -> Tensor:
    """Return where the valid tokens of the chosen rows are once the others are left out."""
    new_B = chosen_B.long().cumsum(0) - 1
    rows, width = batch.row_N, batch.ids_BS.shape[1]
    at_N = new_B[rows] * width + batch.positions_N % width
    return at_N[chosen_B[rows]]


def map_vocabulary(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", teacher_name: str
) -> tuple[int, Tensor | None]:
    """Return how many of the student's ids a teacher knows, and, of a trimmed student, as which.

    Raises:
        UserError: an id is another string to the teacher, and not all strings are among its own.
    """
    ids = ids_within(teacher.get_vocab(), student.get_vocab())
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
    sides = [{n: text for text, n in t.get_vocab().items()} for t in (student, teacher)]
    shared = min(map(len, sides))
    for number in range(shared):
        ours, theirs = (side.get(number) for side in sides)
        if ours != theirs:
            raise UserError(
                f"id {number} is {ours!r} to the student and {theirs!r} to the teacher",
                where=teacher_name,
                fix="a term {type: uld} compares models of two tokenizers; or train on its text",
            )
    return shared


def check_ids(examples: Sequence[Example], vocabulary: int) -> None:
    """Refuse rows with a token that not every model has."""
    for row in examples:
        if row.ids.max() >= vocabulary:
            raise UserError(
                f"token {int(row.ids.max())} is not among the {vocabulary} ids that both share",
                where=f"row {row.key}",
            )
