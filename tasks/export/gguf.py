"""GGUF form: one file for llama.cpp and software based on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models import checkpoints
from tasks.export.form import Form, Questions, Tolerance, not_installed
from tasks.export.modelfile import MODELFILE, modelfile

if TYPE_CHECKING:
    import numpy as np

FILE = "model.gguf"
_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""transformers' types of models, and the names of the package `gguf` for them."""
_ROOM = 2048
"""Tokens of prompt and answer that are read when the file is checked."""
_SERVING = """\
llama.cpp, OpenAI's API on port 8080, `/v1/{route}completions`:

```bash
llama-server -m {file}
```

Ollama, with the `Modelfile` beside it:

```bash
ollama create student -f Modelfile
ollama run student "$PROMPT"
```

{note}"""


class Gguf(Form):
    """Weights, configuration, tokenizer and chat template in one file."""

    type: Literal["gguf"]
    quantisation: Literal["F32", "F16", "Q8_0", "Q5_0", "Q4_0"] = "Q8_0"
    """Number format of the matrices; vectors stay in float32."""
    tolerance: Tolerance = Tolerance(score=0.02, agreement=0.95)

    reader: ClassVar[str] = "llama.cpp"

    @property
    def name(self) -> str:
        """Return such as `gguf-q8_0`."""
        return f"{self.type}-{self.quantisation.lower()}"

    @property
    def usage(self) -> str:
        """Return a line of llama.cpp."""
        return f'```bash\nllama-cli -m {FILE} --temp 0 -no-cnv -p "$PROMPT"\n```'

    def serving(self, student: Path, folder: Path, example: Row) -> str:
        """Write Ollama's Modelfile; return lines of llama.cpp and Ollama."""
        tokenizer = checkpoints.load_tokenizer(student)
        config = json.loads((student / "config.json").read_text())
        chats = not isinstance(example.prompt, str)
        text, note = modelfile(
            tokenizer,
            FILE,
            chats=chats,
            prefix=example.prefix or "",
            context=config["max_position_embeddings"],
        )
        (folder / MODELFILE).write_text(text, "utf-8")
        return _SERVING.format(file=FILE, note=note, route="chat/" if chats else "")

    def write(self, student: Path, folder: Path) -> None:
        """Write the tensors under llama.cpp's names.

        Raises:
            UserError: the architecture, the tokenizer or a matrix's width is not one of GGUF's.
        """
        import gguf

        from tasks.export.gguf_vocabulary import add_vocabulary

        config = json.loads((student / "config.json").read_text())
        kind = gguf.MODEL_ARCH[_architecture(config, student)]
        writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[kind])
        model, tokenizer = checkpoints.load(student)
        _add_shape(writer, config)
        add_vocabulary(writer, tokenizer, student, config["vocab_size"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        matrices = gguf.GGMLQuantizationType[self.quantisation]
        names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
        # vectors (norms, biases) are small, and lose most by rounding
        for name, weight in _tensors(model, config):
            numbers = matrices if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
            packed = _packed(name, weight, numbers)
            called = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(called, packed, raw_dtype=numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer with llama.cpp: its tokenizer reads the text, its kernels compute."""
        try:
            import xllamacpp
        except ImportError as error:
            raise not_installed("xllamacpp (llama.cpp)", self.name) from error
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / FILE)
        # the CPU alone, one prompt at a time: answers do not depend on the batch
        params.n_ctx, params.n_parallel, params.n_gpu_layers = _ROOM, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = questions.threads
        params.warmup, params.verbosity = False, -1
        server = xllamacpp.Server(params)
        settings = {"max_tokens": questions.max_tokens, "temperature": 0, "cache_prompt": False}

        def answer(prompt: Any) -> str:
            if isinstance(prompt, str):
                reply = server.handle_completions({"prompt": prompt, **settings})
                return str(reply["choices"][0]["text"])
            turns = [turn.as_chat() for turn in prompt]
            reply = server.handle_chat_completions({"messages": turns, **settings})
            return str(reply["choices"][0]["message"]["content"])

        return [answer(prompt) for prompt in questions.prompts]


def _architecture(config: dict[str, Any], student: Path) -> str:
    kind, rotary = config["model_type"], config["rope_parameters"]["rope_type"]
    if kind in _ARCHITECTURES and rotary == "default":
        return _ARCHITECTURES[kind]
    raise UserError(
        f"no GGUF is written of a model of type {kind!r} with {rotary!r} rotary positions; known "
        f"are {', '.join(_ARCHITECTURES)} with 'default'",
        where=str(student),
        fix="take another form, or llama.cpp's own converter on the form safetensors",
    )


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _tensors(model: Any, config: dict[str, Any]) -> "Iterator[tuple[str, np.ndarray]]":
    """Yield the weights as GGUF wants them; a tied head is left out."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        layer = name.split(".")[-2]
        values = weight.float().numpy()
        # rotary pairs: a value is rotated with its partner in the other half of the head by
        # transformers, with its neighbour by llama.cpp
        interleaved = config["model_type"] == "llama" and layer in heads
        yield name, _interleaved(values, heads[layer]) if interleaved else values


def _interleaved(values: "np.ndarray", heads: int) -> "np.ndarray":
    """Bring each head's rows from two halves (x₀ … x₀' …) to pairs (x₀ x₀' …): GGUF's Llama."""
    halves_H2OI = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves_H2OI.swapaxes(1, 2).reshape(values.shape)


def _packed(name: str, weight: "np.ndarray", numbers: Any) -> "np.ndarray":
    from gguf import quants

    try:
        packed: np.ndarray = quants.quantize(weight, numbers)
        return packed
    except quants.QuantError as error:  # the width is not a multiple of the block's
        raise UserError(
            f"{name} cannot be stored as {numbers.name}: {error}",
            where="params.yaml, export.forms",
            fix="quantisation: F16",
        ) from error
