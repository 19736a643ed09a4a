"""Mutual learning: several students at once, each a teacher of the others.

Zhang et al. 2018, "Deep Mutual Learning". The peers learn from the same rows' answers and from
each other's distributions. They start from one checkpoint and must differ: in the layers that they
keep, or by a jitter of their weights. A peer with all layers that does not imitate is a teacher
trained beside its student.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.losses.divergences import ForwardKL, Hard, Term
from cohobate.methods.phase import Phase, PhaseResult
from cohobate.models.layer_choice import Layers
from cohobate.params import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Peer(Section):
    """One of the models that learn together."""

    keep_layers: Layers | None = None
    """Layers of the start that this peer has; all of them when not given."""
    jitter: float = Field(0.0, ge=0)
    """Noise on its first weights, drawn anew for each seed: its standard deviation, as a share of
    each weight matrix's own."""
    imitates: bool = True
    """Whether it learns from its peers too, or from the rows' answers alone."""


class Mutual(Phase):
    """Peers trained at once; the first of them is the student that is published."""

    method: Literal["mutual"]
    peers: tuple[Peer, ...] = Field(min_length=2)
    """The models; no two may be the same."""
    terms: tuple[Term, ...] = (Hard(), ForwardKL())
    """The loss of each peer: hard terms on the rows' answers, soft ones from its peers."""
    keep_peers: bool = False
    """Publish the others too, as `models/train/<phase>/peer-<k>`, k from 2."""

    @model_validator(mode="after")
    def _peers_differ(self) -> "Mutual":
        if self.targets != self.rows:
            raise ValueError(f"mutual learns the rows' answers: targets must be {self.rows}")
        if self.keep_layers is not None:
            raise ValueError("each peer has its own keep_layers: the phase itself has none")
        if self.adapter.type == "lora" and self.adapter.save_adapter:
            raise ValueError("mutual publishes whole peers: leave out save_adapter")
        kinds = {isinstance(term, Hard) for term in self.terms}
        if kinds != {True, False}:
            raise ValueError(
                "mutual needs a hard term (the rows' answers) and a soft one (the peers)"
            )
        # peers with a jitter differ in any case: each draws its own
        starts = [(peer.keep_layers, peer.jitter > 0) for peer in self.peers]
        if any(starts.count(start) > 1 for start in starts if not start[1]):
            raise ValueError("two peers start the same and would stay the same: give one a jitter")
        return self

    def load_initial_model(self, seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the first peer."""
        return self.load_layers(seed, self.peers[0].keep_layers)

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train `model` as the first peer, and the others beside it."""
        from cohobate.methods.mutual_loss import MutualLoss
        from cohobate.models.lm_head import check_head
        from cohobate.training.model_setup import training_setup
        from cohobate.training.trainer import fit

        examples = self.examples(tokenizer, rows)
        others = [self.load_layers(seed, peer.keep_layers)[0] for peer in self.peers[1:]]
        for number, peer in enumerate(self.peers):
            # another seed for each peer, and no two equal over the phase's seeds
            _jitter([model, *others][number], peer.jitter, seed * len(self.peers) + number)
        longest = max((len(row.ids) for row in examples), default=0)
        with ExitStack() as stack:
            # `fit` makes the first peer ready itself
            for other in others:
                check_head(other)
                stack.enter_context(training_setup(other, self, longest, seed))
            history = fit(
                model,
                examples,
                self.terms,
                self,
                seed=seed,
                label=label,
                loss_fn=MutualLoss(
                    [model, *others],
                    self.terms,
                    [peer.imitates for peer in self.peers],
                    chunk_tokens=self.chunk_tokens,
                    vocabulary=len(tokenizer),
                    compiled=self.compiled,
                ),
            )
        kept = {f"peer-{n}": other for n, other in enumerate(others, start=2) if self.keep_peers}
        return PhaseResult(history, len(examples), extra_models=kept)


def _jitter(model: "PreTrainedModel", size: float, seed: int) -> None:
    import torch

    from cohobate.models.mapped_weights import settle

    if not size:
        return
    settle(model)  # noise as in one process: drawn for whole float32 weights
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # norms and biases stay
                noise = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
                weight.add_(noise * (size * float(weight.std())))
