"""Soft targets of a causal student from distributions over labels, token by token.

The labels' texts, in the student's own tokens, form a prefix tree. At each token of a row's answer
the target is the teacher's distribution over what comes next in the tree: the probability of all
labels that go on so, among those that begin as the answer does. By the chain rule these are the
factors of the distribution over labels. No vocabulary of the teacher's is involved, so that its
tokenizer may be another one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cohobate.data.examples import Example, row_key
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs
from cohobate.generation.label_likelihood import LabelTree
from cohobate.losses.soft_targets import SoftTargets
from cohobate.losses.top_k import TopK
from cohobate.progress import say
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.signal_store.label_mean import MeanLabelStore
from cohobate.teachers.signal_store.label_store import LabelStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Progressive

_NEVER = -100.0
"""Log-probability of what no label has next: finite, so that every divergence is."""


class StoredLabelSource:
    """Soft targets of answer tokens, read from a store of label distributions.

    Args:
        store: of one teacher, or the mean of several.
        temperatures: of the softmaxes of the loss's terms.
        progressive: schedule of the teacher's share in the target.
    """

    matching: "LayerMatching | None" = None

    def __init__(
        self,
        store: LabelStore | MeanLabelStore,
        temperatures: Sequence[float] = (1.0,),
        progressive: "Progressive | None" = None,
    ) -> None:
        self.store, self.progressive = store, progressive
        self.temperatures = tuple(dict.fromkeys(temperatures))
        self._place: dict[str, int] = {}
        self._tree = LabelTree(())
        self._below: dict[tuple[int, ...], tuple[list[int], list[list[int]]]] = {}

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """None."""
        return []

    def attach(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> list[Example]:
        """Return the examples whose answers are labels to the letter, and that the store has.

        Raises:
            UserError: a prompt was not captured, or no example is left.
        """
        by_key = {row_key(row): row for row in rows}
        own = [by_key[example.key] for example in examples]
        places = self.store.places(own)
        labels = [own[0].model_copy(update={"answer": text}) for text in self.store.origin.texts]
        ids = [tuple(one.completion_ids) for one in encode_all(tokenizer, labels)]
        self._tree = LabelTree(tuple(ids))
        self._below = {node: self._children(node) for node in self._tree.nodes}
        kept, left_out = [], Counter[str]()
        for example, place in zip(examples, places.tolist(), strict=True):
            if place < 0:
                left_out["they have no signals"] += 1
            elif tuple(example.labels.tolist()) not in ids:
                left_out["the answer is no label to the letter"] += 1
            else:
                self._place[example.key] = place
                kept.append(example)
        for reason, count in sorted(left_out.items()):
            say(f"{count} of {len(examples)} rows left out: {reason}")
        if not kept:
            raise UserError(
                f"no row has an answer that is one of {len(ids)} labels to the letter",
                where=str(self.store.folder),
                fix=f"the labels are {', '.join(map(repr, self.store.origin.texts[:5]))}, …",
            )
        return kept

    def _children(self, node: tuple[int, ...]) -> tuple[list[int], list[list[int]]]:
        """Return the tokens behind a node, and for each the labels that go on so."""
        labels = list(enumerate(self._tree.labels))
        below = [(n, label) for n, label in labels if label[: len(node)] == node]
        tokens = sorted({label[len(node)] for _, label in below if len(label) > len(node)})
        return tokens, [[n for n, label in below if label[len(node)] == t] for t in tokens]

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the ids that come next at each answer token, and their log-probabilities."""
        logp_RC = self.store.logprobs([self._place[row.key] for row in rows])
        most = max(len(tokens) for tokens, _ in self._below.values())
        ids_NK, logp_NK = [], []
        for row, logp_C in zip(rows, logp_RC, strict=True):
            for node in _beginnings(row.labels.tolist()):
                tokens, labels = self._below[node]
                masses = torch.stack([logp_C[each].logsumexp(-1) for each in labels])
                padding = most - len(tokens)
                ids_NK.append([*tokens, *_others(tokens, padding)])
                never = torch.full((padding,), _NEVER)
                logp_NK.append(torch.cat([masses.log_softmax(-1).clamp_min(_NEVER), never]))
        return {"ids_NK": torch.tensor(ids_NK), "logp_NK": torch.stack(logp_NK)}

    def targets(self, batch: MicroBatch) -> tuple[SoftTargets, ForwardOutputs | None]:
        """Return the distributions: all that no label has next is next to impossible."""
        ids_NK: Tensor = batch.teacher_inputs["ids_NK"]
        logp_NK: Tensor = batch.teacher_inputs["logp_NK"]
        rest_NQ = logp_NK.new_full((len(ids_NK), len(self.temperatures)), _NEVER)
        return TopK(ids_NK, logp_NK, rest_NQ, self.temperatures), None


def _beginnings(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield what stands before each token."""
    return (tuple(ids[:n]) for n in range(len(ids)))


def _others(tokens: Sequence[int], count: int) -> list[int]:
    """Return `count` ids that are not among the tokens: the places of a row need different ones."""
    free = (n for n in range(len(tokens) + count) if n not in set(tokens))
    return [next(free) for _ in range(count)]
