"""ONNX form: a graph from token ids to logits, for runtimes without Python."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cohobate.data.records import Row
from cohobate.generation.decoding import suppression_bias
from cohobate.models import checkpoints
from tasks.export.form import Form, Questions, Tolerance, not_installed

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.data.tokenized import Encoded

GRAPH = "model.onnx"


class Onnx(Form):
    """One graph without a cache, in float32: each new token reads the whole text again.

    That is dear for long answers, and right for labels and other short ones.
    """

    type: Literal["onnx"]
    tolerance: Tolerance = Tolerance(score=0.01, agreement=0.97)

    reader: ClassVar[str] = "onnxruntime"

    @property
    def name(self) -> str:
        """Return `onnx`."""
        return self.type

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

    def write(self, student: Path, folder: Path) -> None:
        """Trace the model with free batch and length; put the tokenizer beside the graph."""
        try:
            import onnxscript  # noqa: F401  what torch.onnx stands on
        except ImportError as error:
            raise not_installed("onnxscript", self.type) from error
        model, tokenizer = checkpoints.load(student)
        tokenizer.save_pretrained(folder)
        _traced(model).save(str(folder / GRAPH))

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer prompt after prompt with onnxruntime."""
        from cohobate.data.tokenized import prompt_ids

        session = self._session(folder, questions.threads)
        tokenizer = checkpoints.load_tokenizer(folder)
        return [
            tokenizer.decode(_greedy(session, ids, questions.max_tokens, tokenizer.eos_token_id))
            for ids in prompt_ids(tokenizer, questions.prompts)
        ]

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float]:
        """Read answer after answer with onnxruntime."""
        from cohobate.data.tokenized import encode_all

        session = self._session(folder, threads)
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


def _traced(model: Any) -> Any:
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
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that no graph here has
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            Logits().eval(),
            (torch.ones(2, 7, dtype=torch.long),),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": free},
            dynamo=True,
            verbose=False,
        )
