"""ONNX graph of an embedder: from token ids and their mask to the vectors of texts, of length one.

A static embedder's graph is its table, and the mean of a text's tokens.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from cohobate.data.messages import prompt_text
from cohobate.models import checkpoints, embedders
from cohobate.scoring.rankings import DEPTH, distinct_documents
from tasks.export import onnx_encoders
from tasks.export.form import Questions

if TYPE_CHECKING:
    from torch import Tensor


def traced(model: Any) -> Any:
    """Return the graph of an embedder, with free batch and length."""
    from torch.nn import functional as F

    def vectors(input_ids: "Tensor", attention_mask: "Tensor") -> "Tensor":
        return F.normalize(embedders.pooled(model, input_ids, attention_mask), dim=-1)

    return onnx_encoders.traced(model, vectors, "vectors")


def usage_of(folder: Path) -> str:
    """Return a few lines of onnxruntime."""
    config = json.loads((folder / "config.json").read_bytes())
    limit = config[checkpoints.SENTENCE_EMBEDDING]["max_tokens"]
    cut = f", truncation=True, max_length={limit}" if limit else ""
    if config["model_type"] == "static_embedding":
        cut += ", add_special_tokens=False"
    return f"""```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
batch = tokenizer(texts, padding=True{cut}, return_tensors="np")
inputs = {{name: batch[name] for name in ("input_ids", "attention_mask")}}
vectors = session.run(None, inputs)[0]
print(vectors @ vectors.T)   # cosines
```"""


def answers(session: Any, folder: Path, questions: Questions) -> list[str]:
    """Rank the documents for each query."""
    documents = distinct_documents(questions.documents)
    vectors_CD = _vectors(session, folder, list(documents))
    vectors_RD = _vectors(session, folder, [prompt_text(prompt) for prompt in questions.prompts])
    order_RC = np.argsort(-(vectors_RD @ vectors_CD.T), axis=1, kind="stable")[:, :DEPTH]
    return ["\n".join(documents[n] for n in order) for order in order_RC.tolist()]


def _vectors(session: Any, folder: Path, texts: list[str]) -> np.ndarray:
    config = json.loads((folder / "config.json").read_bytes())
    described: Any = SimpleNamespace(config=SimpleNamespace(**config))
    rows = embedders.text_ids(described, checkpoints.load_tokenizer(folder), texts)
    return np.stack([onnx_encoders.computed(session, ids) for ids in rows])
