"""LoRA: what it trains, what it merges into, and that the head is never passed over."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cohobate.errors import UserError
from cohobate.training import checkpointing
from cohobate.training.adapters import Lora
from cohobate.training.hyperparameters import Freeze
from tests.cohobate.training.test_trainer import digest, examples, settings, train

LORA = {"type": "lora", "rank": 4, "alpha": 8}
TWO = ["q_proj", "v_proj"]
BY_NAME = LORA | {"target_modules": TWO}

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def untied(make_model: Any, tokenizer: Any) -> Any:
    return make_model(tokenizer, tie_word_embeddings=False)


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = model.state_dict()
    assert after.keys() == before.keys()  # merged: nothing of the adapter is left
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


def copy_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize(
    ("adapter", "frozen", "maps"),
    [
        (BY_NAME, 0, BY_NAME["target_modules"]),
        (BY_NAME, 2, BY_NAME["target_modules"]),
        (LORA, 0, ALL),
    ],
)
def test_the_chosen_maps_and_no_others_change(
    untied: Any, adapter: dict[str, Any], frozen: int, maps: list[str]
) -> None:
    before, model = copy_of(untied), untied
    chosen = {"adapter": adapter, "freeze": Freeze(layers=frozen)}
    history = train(model, examples(), settings(**chosen, learning_rate=0.02, updates=12))
    assert history[-1].loss < history[0].loss
    changed_maps = {tuple(name.split(".")[i] for i in (2, 4)) for name in changed(model, before)}
    assert changed_maps == {(str(layer), name) for layer in range(frozen, 4) for name in maps}
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_update_has_the_rank_that_was_chosen(model: Any) -> None:
    before = copy_of(model)
    train(model, examples(), settings(adapter=BY_NAME, learning_rate=0.02))
    name = "model.layers.1.self_attn.q_proj.weight"
    update = (model.state_dict()[name] - before[name]).double()
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 4


def test_what_is_merged_answers_as_what_was_trained(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    adapter = Lora.model_validate(BY_NAME)
    with torch.no_grad(), adapter.attach(model, [], seed=1):
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
        trained = model(ids).logits
    torch.testing.assert_close(model(ids).logits.detach(), trained, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes(make_model: Any, tokenizer: Any) -> None:
    digests = []
    for _ in range(2):
        model = make_model(tokenizer)
        torch.rand(7)
        train(model, examples(), settings(adapter=BY_NAME | {"dropout": 0.1}))
        digests.append(digest(model))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_the_head_is_refused_by_name(
    make_model: Any, tokenizer: Any, tied: bool, target: str
) -> None:
    model = make_model(tokenizer, tie_word_embeddings=tied)
    with pytest.raises(UserError, match="head or the embeddings"):
        train(model, examples(), settings(adapter=LORA | {"target_modules": ["q_proj", target]}))


def test_maps_that_are_not_there_are_refused(model: Any) -> None:
    with pytest.raises(UserError, match="arget modules"):
        train(model, examples(), settings(adapter=LORA | {"target_modules": ["query"]}))


def test_a_run_with_an_adapter_goes_on_where_it_was(
    project: Any, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(adapter=BY_NAME | {"dropout": 0.1}, checkpoint_every=2)
    clean = make_model(tokenizer)
    train(clean, examples(), chosen)
    from cohobate.training.callbacks import CheckpointCallback

    original = CheckpointCallback.on_step_end

    def stops(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(callback, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as fault, checkpointing.resumable("a/seed-1"):
        fault.setattr(CheckpointCallback, "on_step_end", stops)
        with pytest.raises(KeyboardInterrupt):
            train(make_model(tokenizer), examples(), chosen)
    (folder,) = checkpointing.TRAINING.rglob("update-*")
    assert (folder / "weights.safetensors").stat().st_size < 20_000  # the adapter's alone
    again = make_model(tokenizer)
    with checkpointing.resumable("a/seed-1"):
        history = train(again, examples(), chosen)
    assert len(history) == 4 and digest(again) == digest(clean)


def test_a_base_in_bfloat16_is_rounded_by_nothing_but_saving(untied: Any) -> None:
    for weight in untied.parameters():  # as it is stored by default
        weight.data = weight.data.bfloat16().float()
    frequencies = untied.model.rotary_emb.inv_freq.clone()
    before, dtypes = copy_of(untied), set()
    adapter = Lora.model_validate(BY_NAME | {"base_precision": "bfloat16"})
    original = adapter.attach

    def attached(*arguments: Any) -> Any:
        context = original(*arguments)

        @contextmanager
        def noting() -> Any:
            with context:
                dtypes.update(
                    ("lora" in name, weight.dtype) for name, weight in untied.named_parameters()
                )
                yield

        return noting()

    object.__setattr__(adapter, "attach", attached)
    history = train(untied, examples(), settings(adapter=adapter, learning_rate=0.02, updates=12))
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    assert history[-1].loss < history[0].loss
    assert {weight.dtype for weight in untied.parameters()} == {torch.float32}
    assert {tuple(name.split(".")[-2:-1]) for name in changed(untied, before)} == {
        (name,) for name in TWO
    }
    assert torch.equal(untied.model.rotary_emb.inv_freq, frequencies)
