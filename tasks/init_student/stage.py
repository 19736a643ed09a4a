"""Make the initial student: its checkpoint before training.

In:  data/preflight/models.json; models/adapt/<teacher> where its tuned layers are copied; the rows
     by which layers are selected, or whose answers are the labels of a classifier
Out: models/init_student, a checkpoint (cohobate/models/checkpoints.py), and its summary.json:

    {"layers": 4, "parameters": 42472512, "parameters_of_embeddings": 28311552,
     "vocabulary": 49152, "width": 576}
"""

import json
from pathlib import Path

from cohobate.data.records import INIT_STUDENT, MODELS, write_json
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import PinnedModels
from cohobate.students.initialization import StudentInit
from cohobate.teachers.teacher import Teachers


def run(init_student: StudentInit, teachers: Teachers, task: Task) -> None:
    """Build the student and write its checkpoint.

    Raises:
        UserError: the layers or sizes do not exist, or a model differs from what preflight pinned.
    """
    pins = json.loads(MODELS.read_bytes())
    if init_student.needs_rows and not Path(init_student.rows).is_file():
        fix = "init_student.rows: data/collect/labelled.jsonl, or data/filter/kept.jsonl"
        raise UserError("file not found", where=init_student.rows, fix=fix)
    pinned = PinnedModels(pins["teachers"], pins["student"])
    model, tokenizer = init_student.build(teachers, pinned, task)
    tokenizer = init_student.trim_vocabulary(model, tokenizer)
    provenance = {
        "init_student": init_student.model_dump(mode="json"),
        "source": pins["student"]["fingerprint"],
    }
    checkpoints.save(
        model, tokenizer, INIT_STUDENT, provenance, precision=init_student.save_precision
    )
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(part.weight): part.weight.numel() for part in parts if part is not None}
    figures = {
        "layers": model.config.get_text_config().num_hidden_layers,
        "width": model.config.get_text_config().hidden_size,
        "parameters": model.num_parameters(),
        "parameters_of_embeddings": sum(outer.values()),
        "vocabulary": len(tokenizer),
    }
    write_json(INIT_STUDENT / "summary.json", figures)
    say(f"a student of {figures['layers']} layers, {figures['parameters'] / 1e6:.1f}M parameters")
