"""Training of a causal language model on text and on a teacher's distributions.

    examples = examples_of(rows, encode_all(tokenizer, rows))       # tasks/batches.py
    history = fit(model, examples, [Hard()], hyperparameters, seed=1, what="adapt main")

The loop is transformers' Trainer. What is ours: the hidden rows of the completion alone go through
the head, fused with the loss (tasks/fused_head.py); the loss is a mean over the valid tokens of the
whole update; a loss or gradient that is not finite stops everything at once.

Shapes: B batch, S sequence, N valid tokens, D width, K stored ids, T terms or temperatures.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tasks.batches import Batches, Example, plan
from tasks.divergences import Divergence, Term
from tasks.errors import UserError
from tasks.fused_head import Head, Targets, TopK, fused_head_loss
from tasks.hyperparameters import Freeze, Hyperparameters
from tasks.progress import Meter
from tasks.signals import SignalStore

SHORT_ROW = 256
"""Tokens up to which eager attention trains faster than SDPA on a CPU."""


class Update(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    learning_rate: float
    stage: int


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    terms: Sequence[Term],
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    what: str,
    signals: SignalStore | None = None,
    vocabulary: int | None = None,
) -> list[Update]:
    """Train `model` in place (its weights end as float32, in eval mode) and return the history.

    Args:
        model: any causal LM of transformers.
        examples: rows as token ids, in any order.
        terms: what the loss is made of (tasks/divergences.py); `[Hard()]` is plain SFT.
        hyperparameters: how long and how fast.
        seed: of the order of rows, and of dropout.
        what: name of this run in the progress, such as `train kd, seed 1`.
        signals: where the teacher's stored distributions are read; every soft term needs them.
        vocabulary: number of real ids (`len(tokenizer)`) where the head is padded to be wider.

    Raises:
        UserError: the loss or its gradient is not finite: names the rows; no rows to learn from; a
            soft term without signals; or a head that is more than a linear map.
    """
    if not examples:
        raise UserError("there is nothing to learn: no row has an answer", where=what)
    if signals is None and any(isinstance(term, Divergence) for term in terms):
        raise UserError(
            "a soft term needs a teacher's signals", where=what, mend="targets: capture/…"
        )
    torch.set_num_threads(hyperparameters.threads)
    freeze(model.float(), hyperparameters.freeze)
    check_head(model)
    batches = plan(examples, hyperparameters, seed)
    data = Batches(examples, batches, hyperparameters.rows_at_once, signals)
    learner = Learner(model, terms, hyperparameters.chunk_tokens, signals, vocabulary)
    stages = [examples[batch[0]].stage for batch in batches]
    longest = max(len(example.ids) for example in examples)
    with _attention(model, hyperparameters, longest), tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(hyperparameters, len(batches), seed, scratch)
        trainer = FusedTrainer(learner, arguments, data, Meter(what, len(batches)), stages)
        trainer.train()
    model.eval().requires_grad_(True)
    return trainer.history


class Learner(nn.Module):
    """A causal LM that returns its loss; the whole of it is what a Trainer or DDP wraps."""

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[Term],
        chunk_tokens: int = 512,
        signals: SignalStore | None = None,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.terms, self.chunk_tokens = model, terms, chunk_tokens
        self.temperatures = signals.origin.temperatures if signals else ()
        self.vocabulary = vocabulary
        self._head: Head | None = None

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        targets_N: Tensor,
        divisor: float,
        stored_ids_NK: Tensor | None = None,
        stored_logp_NK: Tensor | None = None,
        stored_leftover_NT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each valid token and term, (N, T).

        Right padding under a causal mask: what is valid never attends to padding.
        """
        hidden_BSD = self.model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        hidden_ND = hidden_BSD.flatten(0, 1)[positions_N]
        if self._head is None:  # not before: moving a model to its device makes new parameters
            self._head = Head.of(self.model, self.vocabulary)
        stored = None
        if stored_ids_NK is not None and stored_logp_NK is not None:
            assert stored_leftover_NT is not None
            stored = TopK(stored_ids_NK, stored_logp_NK, stored_leftover_NT, self.temperatures)
        return fused_head_loss(
            hidden_ND,
            self._head,
            self.terms,
            Targets(targets_N, stored),
            divisor=divisor,
            chunk_tokens=self.chunk_tokens,
        )


class FusedTrainer(Trainer):
    """transformers' Trainer with its loss, its order of rows and its watch; it writes nothing."""

    def __init__(
        self,
        learner: Learner,
        arguments: TrainingArguments,
        data: Batches,
        meter: Meter,
        stages: Sequence[int],
    ) -> None:
        super().__init__(learner, arguments, train_dataset=data)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Follow(self))
        self.loss_is_scaled_for_ga = True
        self.data, self.meter, self.stages = data, meter, stages
        self.history: list[Update] = []
        self._losses: list[Tensor] = []
        self._parts: list[Tensor] = []

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the planned micro-batches in their order."""
        loader = DataLoader(self.data, batch_size=1, collate_fn=itemgetter(0))
        prepared: DataLoader[dict[str, Tensor]] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the micro-batches of one update, and the number of valid tokens in all of them."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        valid = torch.tensor(sum(len(batch["targets_N"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            valid = self.accelerator.gather(valid).sum()
        return batches, valid.clamp_min(1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the update's mean loss over valid tokens."""
        loss, losses_NT = model(**inputs, divisor=num_items_in_batch)
        self._losses.append(loss.detach())
        self._parts.append(losses_NT)
        loss = loss * self.accelerator.num_processes  # what DDP's mean divides by
        return (loss, losses_NT) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip; and stop before the step when the loss or the gradient is not finite."""
        norm: Tensor = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise self._not_finite()
        return norm

    def _not_finite(self) -> UserError:
        first = self.state.global_step * self.args.gradient_accumulation_steps
        rows, bad = [], []
        for number, losses_NT in enumerate(self._parts, start=first):
            some = self.data.rows(number)
            owner = [row.key for row in some for _ in range(row.length)]
            finite = losses_NT.sum(-1).isfinite().tolist()
            rows += [row.key for row in some]
            bad += [key for key, good in zip(owner, finite, strict=True) if not good]
        shown = ", ".join(list(dict.fromkeys(bad or rows))[:8])
        return UserError(
            f"the {'loss' if bad else 'gradient'} is not finite; nothing is published",
            where=f"{self.meter.what}, update {self.state.global_step + 1}, rows {shown}",
            mend="lower learning_rate or clip, or look at these rows",
        )

    def close_update(self, learning_rate: float) -> None:
        """Note the update whose gradient is complete."""
        step = self.state.global_step
        loss = float(torch.stack(self._losses).sum())
        self.history.append(Update(step + 1, loss, learning_rate, self.stages[step]))
        self._losses.clear()
        self._parts.clear()


class _Follow(TrainerCallback):
    """Tells the meter and the history of each update."""

    def __init__(self, trainer: FusedTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.close_update(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.meter.advance()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.meter.finish()


def freeze(model: PreTrainedModel, frozen: Freeze) -> None:
    """Set which weights of a causal LM get no gradient.

    Raises:
        UserError: more blocks are to be frozen than there are, or nothing is left to train.
    """
    model.requires_grad_(True)
    blocks = blocks_of(model)
    if frozen.layers > len(blocks):
        raise UserError(f"cannot freeze {frozen.layers} blocks: the model has {len(blocks)}")
    if frozen.embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if frozen.head:
        model.get_output_embeddings().requires_grad_(False)
    for block in blocks[: frozen.layers]:
        block.requires_grad_(False)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of blocks of a causal LM."""
    lists = [m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList)]
    if len(lists) != 1:
        raise UserError(f"cannot tell which modules of {type(model).__name__} are its blocks")
    return lists[0]


def check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are more than a linear map of its last hidden state.

    Raises:
        UserError: `Head` does not give the model's own logits.
    """
    ids_BS = torch.tensor([[1, 2]], device=model.device)
    with torch.no_grad():
        hidden_ND = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state[0]
        head = Head.of(model)
        ours, theirs = head.logits(hidden_ND, head.weight_VD), model(input_ids=ids_BS).logits[0]
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise UserError(f"{type(model).__name__} does more with its last hidden state than a head")


@contextmanager
def _attention(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int
) -> Iterator[None]:
    """Attend in the way that trains fastest for rows of this length; set it back afterwards."""
    before, wanted = model.config._attn_implementation, hyperparameters.attention
    if wanted == "auto":
        short = longest <= SHORT_ROW and not torch.cuda.is_available()
        wanted = "eager" if short else "sdpa"
    model.set_attn_implementation(wanted)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _arguments(
    hyperparameters: Hyperparameters, updates: int, seed: int, scratch: str
) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    at_once = hyperparameters.rows_at_once
    return TrainingArguments(
        output_dir=scratch,
        use_cpu=not on_gpu,
        bf16=hyperparameters.precision == "bfloat16",
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=math.ceil(hyperparameters.batch_size / at_once),
        max_steps=updates,
        learning_rate=hyperparameters.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            hyperparameters.schedule, hyperparameters.schedule
        ),
        warmup_steps=round(hyperparameters.warmup * updates),
        weight_decay=hyperparameters.weight_decay,
        adam_beta1=hyperparameters.betas[0],
        adam_beta2=hyperparameters.betas[1],
        max_grad_norm=hyperparameters.clip,
        optim="adamw_torch_fused",
        seed=seed,
        report_to="none",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )
