"""Families of models whose configurations use names of their own: each is read, run and cut."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cohobate.errors import UserError
from cohobate.evaluation.answer_logprobs import AnswerLogprobs
from cohobate.evaluation.forgetting import Forgetting
from cohobate.fast.forward_pass import forward
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import generate_answers, stop_ids
from cohobate.generation.requests import Batching, Decoding
from cohobate.losses.divergences import ForwardKL
from cohobate.models import checkpoints
from cohobate.models.layers import learned_positions
from cohobate.models.lm_head import Head
from cohobate.models.model_info import read_model_info
from cohobate.students.from_config import parameters_after_cut
from cohobate.students.layer_cutting import keep_layers
from cohobate.students.random_weights import random_model
from cohobate.teachers.target_sources import LiveSource
from cohobate.training.trainer import fit
from tasks.preflight.memory import size_of
from tests.cohobate.training.test_trainer import examples, settings
from tests.tiny_models import make_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {},
    "GPTJ": {"rotary_dim": 4},
    "GPTNeo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "Bloom": {},
    "Falcon": {"multi_query": True, "alibi": True},
    "Mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128},
    "Phi": {},
    "StableLm": {},
    "Gemma2": {"head_dim": 8, "sliding_window": 6},
    "Mistral": {"sliding_window": 6},
    "Mixtral": EXPERTS,
    "GptOss": EXPERTS | {"head_dim": 8},
    "Granite": {"logits_scaling": 8.0},
    "Mamba": {},
}
PROMPTS = ["Definition: a small animal\nCategory:", "a", "Definition: a small plant person animal"]


def publish(name: str, folder: Path) -> tuple[Any, Any]:
    """Save a model of a family with random weights and a tokenizer; return both."""
    import transformers

    tokenizer = make_tokenizer()
    known = getattr(transformers, f"{name}Config")
    names = set(known().to_dict()) | set(known.attribute_map)
    options = {k: v for k, v in (SIZES | {"vocab_size": len(tokenizer)}).items() if k in names}
    made = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, made)(known(**(options | FAMILIES[name]))).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.usefixtures("one_thread")
def test_a_family_is_read_run_and_cut(name: str, tmp_path: Path) -> None:
    model, tokenizer = publish(name, tmp_path / "whole")
    outline = read_model_info(tmp_path / "whole")
    assert (outline.depth, outline.to_json()["width"]) == (4, 32)
    assert outline.parameters() == model.num_parameters()
    assert size_of(outline).heads == (1 if name == "Mamba" else 4)

    loaded, _ = load_frozen(tmp_path / "whole")
    ids, at = torch.randint(2, 200, (3, 14)), torch.tensor([4, 5, 23, 27, 35, 36])
    with torch.no_grad():  # rows of unlike length, read without padding where the family can
        actual = Head.of(loaded).logits(forward(loaded, ids, at).last_hidden_ND)
        expected = model(ids).logits.flatten(0, 1)[at]
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()

    _writes_as_generate_does(loaded, model, tokenizer)

    cut, _ = checkpoints.load(tmp_path / "whole")
    keep_layers(cut, [0, 3])
    assert cut.num_parameters() == parameters_after_cut(tmp_path / "whole", [0, 3])
    checkpoints.save(cut, tokenizer, tmp_path / "cut", {})
    again, _ = checkpoints.load(tmp_path / "cut")
    torch.testing.assert_close(again(ids).logits, cut(ids).logits, rtol=1e-4, atol=1e-4)
    if name != "GPTNeo":  # its list of layers has the length of its own
        layers = {"num_hidden_layers": 2}
        assert random_model(tmp_path / "whole", layers, 0, device="meta").num_parameters() > 0


@pytest.mark.parametrize("name", ["GPT2", "OPT", "Phi"])
def test_rows_beyond_learnt_positions_are_refused_and_general_text_is_read_in_pieces(
    name: str, tmp_path: Path
) -> None:
    model, tokenizer = publish(name, tmp_path)
    learnt = 128 if name != "Phi" else None
    assert learned_positions(model) == learnt
    long = torch.randint(2, 200, (1, 130))
    if learnt:
        with pytest.raises(UserError, match=r"130 tokens, .* has positions for 128") as refused:
            forward(model, long, torch.tensor([129]))
        assert "max_tokens: 128" in refused.value.fix
    text = "a small animal; " * 60
    figures = Forgetting().measure(AnswerLogprobs(model, tokenizer), [text])
    assert figures["tokens"] == len(tokenizer(text).input_ids) - 1 > 128


@pytest.mark.parametrize("name", ["GPT2", "GPTJ"])
@pytest.mark.usefixtures("one_thread")
def test_a_family_learns_from_a_live_teacher(name: str, tmp_path: Path) -> None:
    """GPT-2 has names of its own for its sizes, GPT-J none but eager attention."""
    _, tokenizer = publish(name, tmp_path)
    student, teacher = (checkpoints.load(tmp_path)[0] for _ in range(2))
    with torch.no_grad():
        student.get_output_embeddings().weight.mul_(0.3)
    live, size = LiveSource({"main": teacher}, len(tokenizer)), len(tokenizer)
    how = settings(updates=6, batch_size=8, learning_rate=0.02, schedule="constant")
    options = {"seed": 1, "label": "a test", "target_source": live, "vocabulary": size}
    history = fit(student, examples(8), [ForwardKL()], how, **options)
    assert history[-1].loss < history[0].loss


def _writes_as_generate_does(loaded: Any, model: Any, tokenizer: Any) -> None:
    stop = stop_ids(model, tokenizer)
    greedy = {"do_sample": False, "pad_token_id": 0, "eos_token_id": sorted(stop)}
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, **greedy)
        written = out[0, ids.shape[1] :].tolist()
        ends = [n for n, token in enumerate(written) if token in stop]
        written = written[: ends[0]] if ends else written
        expected.append(tokenizer.decode(written, clean_up_tokenization_spaces=False))
    decoding, batching = Decoding(max_tokens=20), Batching(rows=4)
    answers = dict(generate_answers(loaded, tokenizer, PROMPTS * 2, decoding, batching))
    assert [answers[n].text for n in range(6)] == expected * 2


@pytest.mark.parametrize("name", ["GPT2", "Mixtral", "Olmo2"])
def test_what_cannot_be_narrowed_is_refused_before_any_weight_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "Olmo2", {})
    publish(name, tmp_path / "whole")
    with pytest.raises(
        UserError, match=r"no attention and gated MLP|no model of its kind"
    ) as refused:
        parameters_after_cut(tmp_path / "whole", [0, 1], (1, 32))
    assert refused.value.fix == "cut by layers alone"


def test_layers_whose_kind_the_configuration_cannot_say_are_refused(tmp_path: Path) -> None:
    """Every second layer of it has experts: of other layers no configuration can say so."""
    import transformers

    options = SIZES | {"vocab_size": 99, "num_local_experts": 4, "head_dim": 8}
    options |= {"interleave_moe_layer_step": 2}
    config = transformers.Llama4TextConfig(**options)
    transformers.Llama4ForCausalLM(config).save_pretrained(tmp_path)
    assert parameters_after_cut(tmp_path, [0, 1]) > 0
    with pytest.raises(UserError, match="no model of its kind"):
        parameters_after_cut(tmp_path, [1, 2])
