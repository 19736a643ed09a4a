"""Likelihoods of labels under a causal LM: of a few given texts behind each prompt.

The tokens of all labels form a prefix tree. It stands behind the prompt as further tokens of the
same row; a mask lets each of them see the prompt and the tokens above it alone, and its position id
is the one that it would have. So one pass gives every label's likelihood, and reads a beginning
that labels share once (the tree attention of SpecInfer, Miao et al. 2023, section 4.2). A model
that does not take such a mask reads each label behind its prompt as a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cohobate.data.tokenized import pad_right
from cohobate.errors import UserError
from cohobate.fast import switch
from cohobate.fast.forward_pass import forward
from cohobate.fast.padding_free import as_attention_mask, takes_mask
from cohobate.models.layers import body_of, check_positions
from cohobate.models.lm_head import Head
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]


@dataclass(frozen=True)
class LabelTree:
    """The prefix tree of the labels' tokens; a node is a beginning that one label or more have."""

    labels: tuple[Ids, ...]
    """Tokens of each label, the one that closes it included."""

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise UserError("two labels have the same tokens", fix="see the answers of the rows")

    @cached_property
    def nodes(self) -> tuple[Ids, ...]:
        """The beginnings, the empty one first, each behind those that it begins with.

        A whole label is none: nothing follows what closes it.
        """
        beginnings = {label[:n] for label in self.labels for n in range(len(label))}
        return tuple(sorted(beginnings, key=lambda node: (len(node), node)))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The tokens that labels have behind each node."""
        behind: dict[Ids, set[int]] = {node: set() for node in self.nodes}
        for label in self.labels:
            for n, token in enumerate(label):
                behind[label[:n]].add(token)
        return tuple(tuple(sorted(behind[node])) for node in self.nodes)

    @cached_property
    def ancestors(self) -> Tensor:
        """Which node's token lies on the way to which, itself included, without the empty one."""
        read = self.nodes[1:]
        pairs = [[below[: len(above)] == above for above in read] for below in read]
        return torch.tensor(pairs, dtype=torch.bool).view(len(read), len(read))

    def paths(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the tokens of each label as (node that predicts it, place among its children)."""
        number = {node: n for n, node in enumerate(self.nodes)}
        for label in self.labels:
            steps = ((number[label[:n]], token) for n, token in enumerate(label))
            yield [(node, self.children[node].index(token)) for node, token in steps]


@dataclass
class LabelLikelihood:
    """A causal LM that gives the log-likelihood of each label behind a prompt.

    Args:
        model: frozen.
        head: its head, over the ids of its tokenizer.
        batch_tokens: tokens, padding included, of one pass.
        chunk_tokens: tokens whose logits are in memory at once.
        threads: passes that run at the same time on a CPU.
    """

    model: "PreTrainedModel"
    head: Head
    batch_tokens: int = 2048
    chunk_tokens: int = 512
    threads: int = 1
    _trees: dict[tuple[Ids, ...], LabelTree] = field(default_factory=dict)

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[Ids]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the position of each prompt and log p of each of its C labels, (C,), in float64.

        Prompts come batch by batch, long ones first; what a prompt is given does not depend on
        `threads`.

        Args:
            prompts: token ids of each prompt.
            labels: token ids of the labels behind each prompt, closing token included.

        Raises:
            UserError: two labels have the same tokens, or the model's numbers are not finite.
        """
        batches = list(self._batches(prompts, [tuple(each) for each in labels]))

        def run(batch: tuple[LabelTree, list[int]]) -> Tensor:
            tree, positions = batch
            return self._logp(tree, [prompts[n] for n in positions])

        for (_, positions), logp_BC in thread_map(run, batches, self.threads):
            yield from zip(positions, logp_BC, strict=True)

    def _batches(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[tuple[Ids, ...]]
    ) -> Iterator[tuple[LabelTree, list[int]]]:
        """Yield prompts with the same labels behind them, in batches of like length."""
        order = sorted(range(len(prompts)), key=lambda n: (labels[n], -len(prompts[n]), n))
        start = 0
        while start < len(order):
            own, longest = labels[order[start]], len(prompts[order[start]])
            tree = self._trees.setdefault(own, LabelTree(own))
            size = max(1, self.batch_tokens // (longest + len(tree.nodes) - 1))
            batch = [n for n in order[start : start + size] if labels[n] == own]
            yield tree, batch
            start += len(batch)

    @torch.inference_mode()
    def _logp(self, tree: LabelTree, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return log p of each label behind each prompt, (B, C)."""
        if switch.enabled() and takes_mask(self.model):
            hidden_ND = self._tree_pass(tree, prompts)
        else:
            hidden_ND = self._plain_pass(tree, prompts)
        return self._of_hidden(tree, hidden_ND, len(prompts))

    def _tree_pass(self, tree: LabelTree, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return what the head reads at each node of each row, (B · nodes, D), by one pass."""
        read = [node[-1] for node in tree.nodes[1:]]
        depths = torch.tensor([len(node) - 1 for node in tree.nodes[1:]], dtype=torch.long)
        ids_BS = pad_right([[*prompt, *read] for prompt in prompts], 0)
        width = ids_BS.shape[1]
        longest = max(map(len, tree.nodes))
        check_positions(self.model, max(map(len, prompts)) + longest)
        mask_BSS = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(prompts), 1, 1)
        position_BS = torch.arange(width).repeat(len(prompts), 1)
        places: list[int] = []
        for row, prompt in enumerate(prompts):
            tokens = slice(len(prompt), len(prompt) + len(read))
            mask_BSS[row, tokens, tokens] = tree.ancestors
            position_BS[row, tokens] = len(prompt) + depths
            position_BS[row, tokens.stop :] = 0  # padding: beyond what a model has positions for
            # the prompt's last token is the empty beginning
            first = row * width + len(prompt) - 1
            places += range(first, first + len(tree.nodes))
        device = self.model.device
        mask = as_attention_mask(self.model, mask_BSS[:, None].to(device))
        out = body_of(self.model)(
            ids_BS.to(device),
            attention_mask=mask,
            position_ids=position_BS.to(device),
            use_cache=False,
        )
        hidden_ND: Tensor = out.last_hidden_state.flatten(0, 1)
        return hidden_ND.index_select(0, torch.tensor(places, device=device))

    def _plain_pass(self, tree: LabelTree, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the same from a row for each node that no other begins with."""
        whole = [label[:-1] for label in tree.labels]
        ends = [n for n in dict.fromkeys(whole) if not any(o[: len(n)] == n != o for o in whole)]
        parts = []
        for prompt in prompts:
            ids_BS = pad_right([[*prompt, *end] for end in ends], 0).to(self.model.device)
            row = [next(n for n, e in enumerate(ends) if e[: len(o)] == o) for o in tree.nodes]
            places = [
                n * ids_BS.shape[1] + len(prompt) - 1 + len(node)
                for n, node in zip(row, tree.nodes, strict=True)
            ]
            positions_N = torch.tensor(places, device=ids_BS.device)
            parts.append(forward(self.model, ids_BS, positions_N).last_hidden_ND)
        return torch.cat(parts)

    def _of_hidden(self, tree: LabelTree, hidden_ND: Tensor, rows: int) -> Tensor:
        """Return log p of each label from what the head reads at every node, (B, C)."""
        most = max(map(len, tree.children))
        padded = [[*tokens, *[0] * (most - len(tokens))] for tokens in tree.children]
        children_NK = torch.tensor(padded, device=hidden_ND.device).repeat(rows, 1)
        parts = []
        chunks = (torch.split(x, self.chunk_tokens) for x in (hidden_ND, children_NK))
        for h_ND, ids_NK in zip(*chunks, strict=True):
            logits_NV = self.head.logits(h_ND)
            logp_NK = logits_NV.gather(-1, ids_NK) - logits_NV.logsumexp(-1, keepdim=True)
            parts.append(logp_NK.double().cpu())
        logp_BNK = torch.cat(parts).view(rows, len(tree.nodes), most)
        labels = []
        for path in tree.paths():
            nodes, columns = zip(*path, strict=True)
            labels.append(logp_BNK[:, list(nodes), list(columns)].sum(-1))
        return torch.stack(labels, -1)
