"""Encoders as teachers: a classifier tuned to the task, and a masked model as it came."""

from itertools import islice
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.data.records import LABELLED, Row, read_rows
from cohobate.errors import UserError
from cohobate.methods.classify import Classify
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat
from cohobate.progress import say
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Task
from cohobate.training import checkpointing
from cohobate.training.hyperparameters import Hyperparameters

_SEED = 0
"""Of the weights of a new head."""


def publish_classifier(
    source: Path,
    folder: Path,
    provenance: dict[str, Any],
    hyperparameters: Hyperparameters,
    task: Task,
    *,
    most_rows: int | None = None,
    seed: int = 0,
    precision: NumberFormat = "float32",
) -> int:
    """Tune an encoder to the labels of the labelled rows and publish it.

    Args:
        source: the encoder, whatever head it has.
        folder: where the classifier goes.
        provenance: what it is made from.
        hyperparameters: of the training.
        task: its verifier compares the answers with the labels.
        most_rows: so many labelled rows, the first of the list; all when not given.
        seed: of the order of rows, and of dropout.
        precision: number format of the weights on disk.

    Returns:
        The number of rows that it was trained on.

    Raises:
        UserError: the labelled rows have no closed set of answers, or the loss is not finite.
    """
    from transformers import AutoConfig

    from cohobate.models.encoder_heads import tokenizer_of, with_label_head

    rows = [row.for_teacher() for row in islice(read_rows(LABELLED, Row), most_rows)]
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    LabelSet.of_rows(rows, task.verifier, str(LABELLED)).write_into(config)
    model, tokenizer = with_label_head(source, config, _SEED), tokenizer_of(source, config)
    label = f"adapt {folder.name}"
    fields = hyperparameters.model_dump(include={*Hyperparameters.model_fields})
    own = {"method": "classify", "from": "adapt", "rows": str(LABELLED), "targets": str(LABELLED)}
    phase: Classify = params.validated(Classify, fields | own, "adapt")
    provenance = provenance | {"number_format": phase.number_format}
    with checkpointing.resumable(
        label.replace(" ", "@"), provenance, checkpointing.content_hash(LABELLED)
    ):
        trained = phase.train(model, tokenizer, rows, seed=seed, label=label)
    checkpoints.save(model, tokenizer, folder, provenance, precision=precision)
    checkpointing.delete_checkpoints(label.replace(" ", "@"))
    return trained.rows


def publish_masked(
    source: Path, folder: Path, provenance: dict[str, Any], task: Task | None
) -> int:
    """Publish an encoder as a masked model; return the number of rows it was trained on: none.

    It names the labels of the labelled rows, where these have a closed set of answers, so that a
    classifier can start from it.
    """
    from cohobate.models.encoder_heads import with_token_head

    model, tokenizer, is_new = with_token_head(source, _SEED)
    if is_new:
        say(
            f"{folder.name}: the encoder has no head over tokens and gets a new one, tied to its "
            "word embeddings; a phase of method: mlm trains it"
        )
    try:
        labels = LabelSet.of_rows(read_rows(LABELLED, Row), task.verifier, "") if task else None
    except UserError:
        labels = None  # text of any kind can be learnt; a phase of classify says what it lacks
    if labels:
        labels.write_into(model.config)
    checkpoints.save(model, tokenizer, folder, provenance)
    return 0
