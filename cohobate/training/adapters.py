"""Adapters: what training changes, the weights themselves or low-rank updates of them (LoRA).

Both end as plain weights: what comes after training needs to know of neither. Low-rank updates can
be published by themselves too, in PEFT's format.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from cohobate import sealed_folder
from cohobate.errors import UserError
from cohobate.models.checkpoints import accelerator
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Blocks = Iterable[nn.Module]


_UNMERGED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""PEFT's configuration and the updates of each model whose training keeps them."""


class Full(Section):
    """Training of the weights themselves."""

    type: Literal["full"] = "full"

    @contextmanager
    def attach(
        self, model: "PreTrainedModel", frozen_blocks: "Blocks", seed: int
    ) -> Iterator[None]:
        """Do nothing."""
        yield


class Lora(Section):
    """Low-rank updates of linear maps, merged into them at the end (Hu et al. 2021).

    All other weights stay as they are, embeddings and head included.
    """

    type: Literal["lora"]
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    """The update is alpha / rank · B A."""
    dropout: float = Field(0, ge=0, lt=1)
    """Dropout of the inputs of A."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear maps, such as `[q_proj, v_proj]`; all but the head when not given."""
    base_precision: Precision | Literal["nf4"] = Field(
        "float32", exclude_if=lambda chosen: chosen == "float32"
    )
    """Number format of the frozen weights. bfloat16 halves their memory, and rounds nothing where
    the start is stored in it; auto: where the processor is fast in it. nf4 (QLoRA) holds the linear
    layers in 4 bits, the rest as auto does, by bitsandbytes (`pip install -e ".[quantised]"`), on a
    CPU too; the published weights are those that the 4 bits stand for, and the updates."""

    save_adapter: bool = Field(False, exclude_if=lambda chosen: not chosen)
    """Publish the updates by themselves too, as PEFT reads them:
    `models/train/<phase>/adapter/seed-<n>`, beside the merged model."""

    @contextmanager
    def attach(
        self, model: "PreTrainedModel", frozen_blocks: "Blocks", seed: int
    ) -> Iterator[None]:
        """Train low-rank updates in place of the weights; merge them as the block ends.

        Args:
            model: changed in place.
            frozen_blocks: transformer blocks that get no update.
            seed: of the updates' initial values.

        Raises:
            UserError: no linear map has such a name, or the head or the embeddings have it.
        """
        import torch

        from cohobate.models.mapped_weights import cast
        from cohobate.training.four_bit_base import four_bit_blocks

        # before the updates, which stay float32
        cast(model, getattr(torch, self.base_format))
        four_bit = four_bit_blocks(model) if self.base_precision == "nf4" else nullcontext()
        with four_bit:
            adapted = self._adapt(model, frozen_blocks, seed)
            yield
        if self.save_adapter:
            _keep_unmerged(model, adapted)
        # the sum of base and update is rounded once, when it is saved
        model.float()
        adapted.merge_and_unload()

    def _adapt(self, model: "PreTrainedModel", frozen_blocks: "Blocks", seed: int) -> Any:
        """Give a model its updates; return PEFT's wrapper of it."""
        import torch
        from peft import get_peft_model

        from cohobate.models.mapped_weights import shown_as_cast

        # the updates draw from `seed`; the random state that dropout draws from stays as it is
        with torch.random.fork_rng(), shown_as_cast(model):
            torch.manual_seed(seed)
            try:
                adapted: Any = get_peft_model(model, self._config())
            except ValueError as error:
                raise UserError(str(error).split(". ")[0], where="adapter.target_modules") from None
        self._refuse_head(model)
        # peft adapts every block; B is zero at first, so a frozen update merges as no change
        for block in frozen_blocks:
            block.requires_grad_(False)
        return adapted

    @property
    def base_format(self) -> NumberFormat:
        """The number format of the frozen weights on this machine; but for those in 4 bits."""
        chosen = "auto" if self.base_precision == "nf4" else self.base_precision
        return resolve(chosen, accelerator())

    def _config(self) -> Any:
        from peft import LoraConfig

        chosen = self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=chosen if isinstance(chosen, str) else list(chosen),
            task_type="CAUSAL_LM",
        )

    def _refuse_head(self, model: "PreTrainedModel") -> None:
        """Refuse an adapter of the head: the fused loss reads its weight, and would skip it."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(isinstance(end, BaseTunerLayer) for end in ends):
            raise UserError(
                "LoRA cannot adapt the head or the embeddings",
                where=f"adapter.target_modules: {self.target_modules}",
                fix="leave them out; or train them whole: adapter: {type: full}",
            )


def merged_weights(model: "PreTrainedModel") -> "Iterator[tuple[str, Tensor]]":
    """Yield each weight with its name, as it would be with its low-rank update merged into it.

    One at a time, and the model stays as it is: to merge and to take it back would round the base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: dict[str, Any] = {
        f"{name}.base_layer.weight": module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        value = weight.data
        if module := adapted.get(name):
            value = value + module.get_delta_weight("default").data.to(value.dtype)
        yield name.replace(".base_layer.", "."), value


def _keep_unmerged(model: "PreTrainedModel", adapted: Any) -> None:
    """Keep the low-rank updates of a model until `publish_adapter`."""
    from peft import get_peft_model_state_dict

    from cohobate import processes

    if processes.rank():  # only the first worker has them whole
        return
    # what is not low-rank is not asked for: PEFT would look for the base's configuration on the hub
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    updates = {name: weight.detach().cpu().clone() for name, weight in state.items()}
    _UNMERGED[model] = (adapted.peft_config["default"], updates)


def publish_adapter(model: "PreTrainedModel", base: Path, folder: Path) -> None:
    """Publish a model's low-rank updates in PEFT's format, where its training kept them.

    Args:
        model: as its training left it.
        base: the checkpoint that was trained; the adapter's configuration names it.
        folder: for the adapter; published whole or not at all.
    """
    if model not in _UNMERGED:
        return
    from safetensors.torch import save_file

    config, updates = _UNMERGED.pop(model)
    config.base_model_name_or_path, config.inference_mode = str(base), True
    # a set of names has another order in each process
    config.target_modules = sorted(config.target_modules)
    with sealed_folder.staged(folder) as partial:
        save_file(updates, partial / "adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(partial)


Adapter = Annotated[Full | Lora, Field(discriminator="type")]
