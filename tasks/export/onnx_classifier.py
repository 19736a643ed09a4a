"""ONNX graph of a classifier: from token ids and their mask to the logits of its labels."""

import json
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.models import checkpoints
from cohobate.scoring.labels import LabelSet
from tasks.export import onnx_encoders

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

USAGE = """```python
import json, numpy as np, onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
batch = tokenizer(prompts, padding=True, truncation=True, return_tensors="np")
inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
logits = session.run(None, inputs)[0]
labels = json.load(open("config.json"))["id2label"]
print([labels[str(n)] for n in logits.argmax(-1)])
```"""


def traced(model: Any) -> Any:
    """Return the graph of a classifier, with free batch and length."""

    def logits(input_ids: "Tensor", attention_mask: "Tensor") -> "Tensor":
        logits_BC: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits_BC

    return onnx_encoders.traced(model, logits, "logits")


def answers(session: Any, folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Return the likeliest label of each prompt."""
    names = labels_of(folder).names
    return [names[int(logp_C.argmax())] for logp_C in _logprobs(session, folder, prompts)]


def losses(session: Any, folder: Path, rows: Sequence[Row]) -> list[float]:
    """Return the loss of each row's label; infinite where its answer is none."""
    labels = labels_of(folder)
    logprobs = _logprobs(session, folder, [row.full_prompt for row in rows])
    places = [labels.index(row.full_answer) for row in rows]
    return [
        inf if place is None else -float(logp_C[place])
        for place, logp_C in zip(places, logprobs, strict=True)
    ]


def labels_of(folder: Path) -> LabelSet:
    """Return the labels that the configuration beside a graph names."""
    config = json.loads((folder / "config.json").read_bytes())
    config["id2label"] = {int(n): name for n, name in config["id2label"].items()}
    return LabelSet.of_config(SimpleNamespace(**config))


def _logprobs(session: Any, folder: Path, prompts: Sequence[Prompt]) -> "Iterator[np.ndarray]":
    import numpy as np

    from cohobate.generation.classification import classifier_ids

    tokenizer = checkpoints.load_tokenizer(folder)
    for ids in classifier_ids(tokenizer, prompts):
        logits_C = onnx_encoders.computed(session, ids)
        logits_C -= logits_C.max()
        yield logits_C - np.log(np.exp(logits_C).sum())
