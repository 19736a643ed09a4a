"""ONNX form: a graph from token ids to logits, for runtimes without Python."""

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cohobate.data.records import Row
from cohobate.generation.decoding import suppression_bias
from cohobate.models import checkpoints
from tasks.export import onnx_classifier, onnx_embedder
from tasks.export.form import Form, Questions, Tolerance, not_installed

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.data.tokenized import Encoded

GRAPH = "model.onnx"


class Onnx(Form):
    """One graph without a cache: each new token reads the whole text again.

    That is dear for long answers, and right for labels and other short ones. Of a classifier it is
    the whole answer: from the ids of a text to the logits of its labels; of an embedder to its
    vector.
    """

    type: Literal["onnx"]
    weights: Literal["float32", "int8"] = Field(
        "float32", exclude_if=lambda numbers: numbers == "float32"
    )
    """`int8`: matrix products in 8 bits, activations quantised as they come (onnxruntime's dynamic
    quantisation); a quarter of the bytes."""
    tolerance: Tolerance = Tolerance(score=0.01, agreement=0.97)

    reader: ClassVar[str] = "onnxruntime"
    writes_classifiers: ClassVar[bool] = True
    writes_embedders: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return `onnx` or `onnx-int8`."""
        return self.type if self.weights == "float32" else f"{self.type}-{self.weights}"

    @property
    def usage(self) -> str:
        """Return a few lines of onnxruntime."""
        return (
            "```python\n"
            "import numpy as np, onnxruntime\n"
            "from transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            f'session = onnxruntime.InferenceSession("{GRAPH}")\n'
            'ids = tokenizer(prompt)["input_ids"]\n'
            "while len(ids) < 256 and ids[-1] != tokenizer.eos_token_id:\n"
            '    logits = session.run(None, {"input_ids": np.array([ids])})[0]\n'
            "    ids.append(int(logits[0, -1].argmax()))\n"
            "```\n\n"
            "The graph keeps no cache: made for short answers."
        )

    def usage_of(self, folder: Path) -> str:
        """Return a few lines of onnxruntime that fit the model."""
        if checkpoints.is_embedder(folder):
            return onnx_embedder.usage_of(folder)
        return onnx_classifier.USAGE if checkpoints.is_classifier(folder) else self.usage

    def write(self, student: Path, folder: Path) -> None:
        """Trace the model with free batch and length; put the tokenizer beside the graph.

        Of an encoder also the configuration, which has its labels, or how it pools.
        """
        try:
            import onnxscript  # noqa: F401  what torch.onnx stands on
        except ImportError as error:
            raise not_installed("onnxscript", self.type) from error
        model, tokenizer = checkpoints.load(student)
        tokenizer.save_pretrained(folder)
        graph = folder / GRAPH
        if checkpoints.is_classifier(student) or checkpoints.is_embedder(student):
            shutil.copyfile(student / "config.json", folder / "config.json")
        with _quiet():
            _traced(model, student).save(str(graph))
        if self.weights == "int8":
            _quantise(graph)

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer prompt after prompt with onnxruntime."""
        from cohobate.data.tokenized import prompt_ids

        session = self._session(folder, questions.threads)
        if checkpoints.is_classifier(folder):
            return onnx_classifier.answers(session, folder, questions.prompts)
        if checkpoints.is_embedder(folder):
            return onnx_embedder.answers(session, folder, questions)
        tokenizer = checkpoints.load_tokenizer(folder)
        return [
            tokenizer.decode(_greedy(session, ids, questions.max_tokens, tokenizer.eos_token_id))
            for ids in prompt_ids(tokenizer, questions.prompts)
        ]

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float] | None:
        """Read answer after answer with onnxruntime; None of an embedder, which gives vectors."""
        from cohobate.data.tokenized import encode_all

        if checkpoints.is_embedder(folder):
            return None
        session = self._session(folder, threads)
        if checkpoints.is_classifier(folder):
            return onnx_classifier.losses(session, folder, rows)
        tokenizer = checkpoints.load_tokenizer(folder)
        return [_loss(session, text) for text in encode_all(tokenizer, rows)]

    def _session(self, folder: Path, threads: int) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise not_installed("onnxruntime", self.type) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(folder / GRAPH), options)


def _loss(session: Any, text: "Encoded") -> float:
    """Return the mean loss of an answer's tokens after its prompt, in nats."""
    import numpy as np

    (logits_BSV,) = session.run(None, {"input_ids": np.array([text.ids[:-1]])})
    logits_NV = logits_BSV[0, len(text.prompt_ids) - 1 :].astype(np.float64)
    logits_NV -= logits_NV.max(axis=1, keepdims=True)
    logp_NV = logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
    return float(-logp_NV[np.arange(len(logp_NV)), text.completion_ids].mean())


def _greedy(session: Any, prompt: list[int], most: int, end: int) -> list[int]:
    """Return the likeliest continuation, without the id that ends it."""
    import numpy as np

    written: list[int] = []
    while len(written) < most:
        (logits_BSV,) = session.run(None, {"input_ids": np.array([prompt + written])})
        following = int(logits_BSV[0, -1].argmax())
        if following == end:
            break
        written.append(following)
    return written


@contextmanager
def _quiet() -> Iterator[None]:
    """Trace within the block, without gradients and without notes that mean nothing here."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that no graph here has
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def _quantise(graph: Path) -> None:
    """Replace a graph in float32 by one with products in 8 bits."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise not_installed("onnxruntime with onnx", "onnx") from error
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.ERROR))
    whole = graph.with_name("float32.onnx")
    graph.rename(whole)
    quantize_dynamic(whole, graph, weight_type=QuantType.QInt8)
    whole.unlink()


def _traced(model: Any, student: Path) -> Any:
    """Return the graph of a model of any kind that has one."""
    if checkpoints.is_classifier(student):
        return onnx_classifier.traced(model)
    return onnx_embedder.traced(model) if checkpoints.is_embedder(student) else _logits(model)


def _logits(model: Any) -> Any:
    import torch

    class Logits(torch.nn.Module):
        """The model, of all its outputs the logits alone; −∞ for tokens that it never says."""

        never: "Tensor | None"

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("never", suppression_bias(model))

        def forward(self, input_ids: "Tensor") -> "Tensor":
            logits_BSV: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return logits_BSV if self.never is None else logits_BSV + self.never

    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    return torch.onnx.export(
        Logits().eval(),
        (torch.ones(2, 7, dtype=torch.long),),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": free},
        dynamo=True,
        verbose=False,
    )
