"""What training takes is told before it is taken, and refused by name where it is not there."""

import dataclasses
import json

import pytest
import torch

from cohobate.errors import UserError
from cohobate.losses.divergences import Hard
from cohobate.models.model_size import ModelSize, size_of_config, size_of_model
from cohobate.training import memory_check, trainer
from cohobate.training.activation_memory import kept_for_backward
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import (
    ACTIVATIONS,
    GATHERED,
    GPU_CONTEXT_BYTES,
    GRADIENTS,
    LOGITS,
    OPTIMISER,
    PROGRAM,
    TEACHERS,
    WEIGHTS,
    Placement,
    TeacherSize,
    frozen_bytes,
    peak_memory,
    trained_parameters,
)
from cohobate.training.memory_check import check_memory
from tests.cohobate.methods.test_on_policy import prompts

SMOL = ModelSize(134_515_008, 28_311_552, 30, 576, 1536, 9, 49_152)


def chosen(**fields) -> Hyperparameters:
    return Hyperparameters.model_validate({"updates": 1} | fields)


def test_the_weights_that_move_are_counted_as_torch_counts_them(make_model, tokenizer) -> None:
    from cohobate.training.model_setup import training_setup

    cases = [
        {},
        {"freeze": {"embeddings": False}},
        {"freeze": {"layers": 3}},
        {"adapter": {"type": "lora", "rank": 4}},
    ]
    for tied in (True, False):
        for case in cases:
            model, how = make_model(tokenizer, tie_word_embeddings=tied), chosen(**case)
            size = size_of_model(model)
            with training_setup(model, how, 10, seed=1):
                moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert size.tied == tied
            assert trained_parameters(size, how) == pytest.approx(moving, rel=0.1), (tied, case)


def test_each_choice_takes_its_part_off() -> None:
    usual = peak_memory(SMOL, chosen(precision="float32"), 512, [TeacherSize(SMOL)])
    moments = {
        name: peak_memory(SMOL, chosen(precision="float32", optimiser=name), 512)[OPTIMISER]
        for name in ("adamw", "adafactor", "sgd")
    }
    assert moments["adafactor"] == moments["sgd"] == 0 < moments["adamw"] == usual[OPTIMISER]
    lora = peak_memory(SMOL, chosen(adapter={"type": "lora"}), 512)
    assert lora[OPTIMISER] < usual[OPTIMISER] / 10
    few = peak_memory(SMOL, chosen(precision="float32", micro_batch_size=8), 512)
    assert few[ACTIVATIONS] == pytest.approx(usual[ACTIVATIONS] / 4, rel=0.05)
    # earlier micro-batches have left gradients
    assert few[GRADIENTS] > usual[GRADIENTS]
    whole, less = (
        peak_memory(SMOL, chosen(batch_size=1, chunk_tokens=n), 512, [TeacherSize(SMOL)])[LOGITS]
        for n in (512, 128)
    )
    assert less < whole
    assert peak_memory(SMOL, chosen(), 512)[TEACHERS] == 0 < 2 * SMOL.parameters < usual[TEACHERS]


def test_a_gpu_computes_in_its_own_format_and_packs_nothing() -> None:
    on_gpu = Placement("cuda")
    teachers = [TeacherSize(SMOL)]
    parts = peak_memory(SMOL, chosen(batch_size=1), 512, teachers, placement=on_gpu)
    assert parts[PROGRAM] == GPU_CONTEXT_BYTES
    assert 2 * SMOL.parameters <= parts[TEACHERS] < 2.2 * SMOL.parameters
    # casts of the linear maps and of the frozen head beside the weights
    assert parts[WEIGHTS] == pytest.approx(4 * SMOL.parameters + 2 * (SMOL.body + SMOL.head))


def test_sharded_workers_hold_a_share_and_gather_a_block() -> None:
    def parts(workers: int, **fields) -> dict[str, int]:
        how = chosen(precision="float32", batch_size=8, sharding="on", **fields)
        return peak_memory(SMOL, how, 64, [TeacherSize(SMOL)], placement=Placement(workers=workers))

    one, four = parts(1), parts(4)
    assert four[WEIGHTS] == one[WEIGHTS] // 4 and four[OPTIMISER] == one[OPTIMISER] // 4
    assert one[GATHERED] == 0
    # small blocks leave their places in a CPU's heap; large ones, and those of a GPU, do not
    assert four[GATHERED] == int(1.25 * (4 * SMOL.embeddings + 4 * 30 * SMOL.block))
    large = dataclasses.replace(SMOL, parameters=10 * SMOL.parameters)
    sharded = chosen(precision="float32", batch_size=8, sharding="on")
    for device, size in (("cpu", large), ("cuda", SMOL)):
        parts_of_four = peak_memory(size, sharded, 64, placement=Placement(device, 4))
        assert parts_of_four[GATHERED] == 4 * size.embeddings + 8 * size.block
    whole = 2 * (SMOL.parameters // 4 + SMOL.embeddings + 2 * SMOL.block)
    assert whole <= four[TEACHERS] < one[TEACHERS]
    # auto: on GPUs alone
    auto = chosen(batch_size=8)
    assert Placement("cpu", 4).shards(auto) == 1 and Placement("cuda", 4).shards(auto) == 4
    assert Placement("cuda", 4).shards(chosen(optimiser="adafactor")) == 1


def test_computed_activations_and_a_narrow_base_take_their_part_off() -> None:
    plain = peak_memory(SMOL, chosen(), 512)
    again = peak_memory(SMOL, chosen(activation_checkpointing=True), 512)
    assert again[ACTIVATIONS] < plain[ACTIVATIONS] / 5
    lora = {"type": "lora", "base_precision": "bfloat16"}
    narrow = peak_memory(SMOL, chosen(adapter=lora), 512)[WEIGHTS]
    assert 2 * SMOL.parameters < narrow < 2.3 * SMOL.parameters


def test_workers_divide_the_rows_of_an_update() -> None:
    how = chosen(precision="float32", batch_size=32)
    one, four = (peak_memory(SMOL, how, 512, placement=Placement(workers=n)) for n in (1, 4))
    assert four[ACTIVATIONS] == pytest.approx(one[ACTIVATIONS] / 4, rel=0.05)
    assert four[WEIGHTS] == one[WEIGHTS]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("tokens", "fast"), [(64, "on"), (200, "on"), (64, "off")])
def test_what_a_layer_keeps_is_what_autograd_saves(monkeypatch, tokens, fast, half, rank) -> None:
    monkeypatch.setenv("COHOBATE_FAST", fast)
    ids = torch.randint(1, 100, (4, tokens))
    saved = [saved_bytes(llama(layers), ids, half, rank) for layers in (2, 3)]
    size = size_of_model(llama(1))
    kept = kept_for_backward(tokens, half=half, on_cpu=fast == "on", rank=rank)
    # beside them: the casts of weights, masks, and a few numbers a token
    casts = 2 * size.block if half else 0
    expected = ids.numel() * kept.bytes(size, tokens) + casts
    assert saved[1] - saved[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("half", [False, True])
def test_what_an_encoder_keeps_is_what_autograd_saves(half) -> None:
    ids = torch.randint(1, 100, (4, 64))
    saved = [saved_bytes(bert(layers), ids, half, 0) for layers in (2, 3)]
    size = size_of_model(bert(1))
    assert not size.generates and size.head == 0 and size.tied
    kept = kept_for_backward(64, half=half, on_cpu=True, encoder=True)
    casts = 2 * size.block if half else 0
    expected = ids.numel() * kept.bytes(size, 64) + casts
    assert saved[1] - saved[0] == pytest.approx(expected, rel=0.05)


def test_a_classifier_has_labels_and_no_vocabulary() -> None:
    encoder = dataclasses.replace(SMOL, generates=False)
    fields = {"precision": "float32", "batch_size": 1, "optimiser": "sgd"}
    parts = [peak_memory(one, chosen(**fields), 512) for one in (SMOL, encoder)]
    assert parts[0][LOGITS] > 512 * SMOL.vocabulary * 4
    assert parts[1][LOGITS] < 512 * SMOL.vocabulary
    # of the embeddings nothing is trained by default, and there is no second matrix
    assert trained_parameters(encoder, chosen()) == SMOL.body
    assert frozen_bytes(encoder, 2) < frozen_bytes(SMOL, 2)


def bert(layers: int):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_size=64,
        intermediate_size=160,
    )
    return BertForSequenceClassification(config)


def llama(layers: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        hidden_size=64,
        intermediate_size=160,
        head_dim=32,
    )
    return LlamaForCausalLM(config)


def saved_bytes(model, ids: torch.Tensor, half: bool, rank: int) -> int:
    """Bytes that autograd saves in a forward pass, beside the weights themselves."""
    from cohobate.fast.forward_pass import forward

    model.train().get_input_embeddings().requires_grad_(False)
    if rank:
        from peft import LoraConfig, get_peft_model

        get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            storages.setdefault(key, tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        if model.can_generate():
            forward(model, ids, torch.arange(ids.numel()))
        else:
            model(ids, attention_mask=torch.ones_like(ids))
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_a_teacher_is_held_twice_unless_it_is_large() -> None:
    maps = SMOL.parameters  # embeddings and head are one matrix, of which the head is packed
    assert frozen_bytes(SMOL, 2) == 2 * (SMOL.parameters + maps)
    assert frozen_bytes(SMOL, 2, on_cpu=False) == 2 * SMOL.parameters
    large = ModelSize(7_000_000_000, 262_144_000, 32, 4096, 14336, 32, 32_000)
    assert frozen_bytes(large, 2) == 2 * large.parameters
    assert frozen_bytes(large, 0) == 0  # loaded already


def test_what_does_not_fit_is_refused_with_its_fix() -> None:
    parts = peak_memory(SMOL, chosen(batch_size=512), 1000, [TeacherSize(SMOL)])
    total = sum(parts.values())
    check_memory("kd", parts, total * 9 // 10, where="here")
    with pytest.raises(UserError, match="kd needs") as caught:
        check_memory("kd", parts, total * 8 // 10, where="params.yaml, train.kd")
    assert caught.value.where == "params.yaml, train.kd"
    assert "micro_batch_size" in (caught.value.fix or "")
    parts = peak_memory(SMOL, chosen(batch_size=1), 10)
    with pytest.raises(UserError) as caught:
        check_memory("kd", parts, 10**6, where="here")
    assert "lora" in (caught.value.fix or "")
    with pytest.raises(UserError) as caught:
        check_memory("kd", parts, 10**6, where="here", fix="cohobate run --set a=1")
    assert caught.value.fix == "cohobate run --set a=1"


def test_training_stops_before_it_begins_where_memory_is_short(
    model, tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="GiB") as caught:
        trainer.fit(model, prompts(), [Hard()], chosen(threads=1), seed=1, label="train kd, seed 1")
    assert caught.value.where == "train kd, seed 1"
    monkeypatch.setattr(memory_check, "available_memory", lambda: None)
    assert trainer.fit(model, prompts(), [Hard()], chosen(threads=1), seed=1, label="it")


def test_a_size_is_told_by_the_configuration(model, tokenizer) -> None:
    size = size_of_model(model)
    config = json.loads(model.config.to_json_string())
    assert size == ModelSize.of(config, model.num_parameters(), len(tokenizer) * 32, 4)
    assert size.with_layers(2).layers == 2
    body = size.parameters - size.embeddings
    assert size.with_layers(2).parameters == size.embeddings + body // 2


def test_a_configuration_alone_is_enough(model, checkpoint, tmp_path) -> None:
    assert size_of_config(checkpoint) == size_of_model(model)
    assert size_of_config(checkpoint / "config.json") == size_of_model(model)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="no causal language model"):
        size_of_config(tmp_path)
