"""The student's first checkpoint, before it learns anything.

In:  data/preflight/models.json; models/adapt/<teacher> where its tuned layers are taken; the rows
     by which the student is cut, where it is cut by rows
Out: models/shape, a checkpoint (tasks/models/checkpoints.py), and its summary.json:

    {"layers": 4, "parameters": 42472512, "parameters_of_embeddings": 28311552,
     "vocabulary": 49152, "width": 576}
"""

import json
from pathlib import Path

from tasks.errors import UserError
from tasks.models import checkpoints
from tasks.progress import say
from tasks.rows.records import MODELS, SHAPE, write_json
from tasks.shape.students import Pins, Student
from tasks.teachers import Teachers


def run(shape: Student, teachers: Teachers) -> None:
    """Build the student and publish it.

    Raises:
        UserError: the layers or sizes do not exist, or a model is another than preflight saw.
    """
    pins = json.loads(MODELS.read_bytes())
    if shape.needs_rows and not Path(shape.rows).is_file():
        mend = "shape.rows: data/collect/labelled.jsonl, or data/filter/kept.jsonl"
        raise UserError("these rows do not exist", where=shape.rows, mend=mend)
    model, tokenizer = shape.build(teachers, Pins(pins["teachers"], pins["student"]))
    tokenizer = shape.trimmed(model, tokenizer)
    provenance = {"shape": shape.model_dump(mode="json"), "source": pins["student"]["fingerprint"]}
    checkpoints.save(model, tokenizer, SHAPE, provenance, precision=shape.save_precision)
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(part.weight): part.weight.numel() for part in parts if part is not None}
    figures = {
        "layers": model.config.get_text_config().num_hidden_layers,
        "width": model.config.get_text_config().hidden_size,
        "parameters": model.num_parameters(),
        "parameters_of_embeddings": sum(outer.values()),
        "vocabulary": len(tokenizer),
    }
    write_json(SHAPE / "summary.json", figures)
    say(f"a student of {figures['layers']} layers, {figures['parameters'] / 1e6:.1f}M parameters")
