"""Capture the teacher's next-token distributions at every answer token of the kept rows; of an
embedder the vectors of their texts.

In:  models/adapt/<teacher>, data/filter/kept.jsonl, and data/signals/<teacher>: the signals that
     came with the teacher's answers
Out: data/capture/<teacher>/     a signal store (cohobate/teachers/signal_store/store.py), or a
                                 vector store (cohobate/teachers/vector_store.py)
     data/capture/<teacher>/summary.json

The stored signals of one row, at the first token of its answer (top_k, K = 3):

    ids        1673        1956        9041         " animal", " plant", " food"
    logprobs   -0.0312     -5.03       -4.12
    rest_logprob -4.89                              log of the mass of all other ids

The signals of rows that came with the answers are copied; the teacher runs for the others alone.
Where the filter keeps what the teacher generated, no pass is left to run. A teacher behind an
endpoint scores the other rows where its service can (cohobate/backends/served_capture.py). Its rows
without signals are in data/capture/<teacher>/missing.jsonl.

With `signals: {type: labels}` the store has the distribution over the task's labels for each
prompt of the kept rows (cohobate/teachers/signal_store/label_store.py); the labels are those of
data/collect/labelled.jsonl, and votes are counted in data/generate/<teacher>.

Rows are processed in shards. A capture that was killed resumes after its last complete shard, and
writes the same bytes (cohobate/teachers/signal_store/shards.py).
"""

import json
from typing import Annotated, Any

from cohobate.params import EachOf, load, validated
from cohobate.scoring.verifiers import Task
from cohobate.teachers.clients import Client
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher


def run(
    item: str,
    teacher: Annotated[Teacher, EachOf("teachers")],
    capture: CaptureParams,
    task: Task | None = None,
) -> None:
    """Store the distributions of the teacher `item` over the kept rows.

    For a teacher with `signals: false`, which provides text alone, nothing is stored but votes.

    Raises:
        UserError: there are no rows, or the teacher's checkpoint is damaged.
    """
    from cohobate.data.records import ADAPT, ANSWER_SIGNALS, CAPTURE, FILTER, write_json
    from cohobate.progress import say
    from cohobate.teachers.signal_store.capture import capture_signals

    if teacher.client:
        _at_client(item, teacher.client)
        return
    folder, form = CAPTURE / item, capture.signals
    if isinstance(form, StoredLabels) and (teacher.signals or form.by == "votes"):
        assert task is not None, "the labels are compared by the task's verifier"
        write_json(folder / "summary.json", _labels(item, capture, task))
        return
    if not teacher.signals:
        write_json(folder / "summary.json", {"stored": "nothing: signals is false"})
        return
    if teacher.endpoint:
        write_json(folder / "summary.json", _served(item, teacher, capture))
        return
    if teacher.kind == "embedder":
        from cohobate.teachers.vector_store import capture_vectors

        label = f"capture {item}"
        vectors = capture_vectors(ADAPT / item, FILTER / "kept.jsonl", folder, capture, label=label)
        write_json(folder / "summary.json", vectors)
        say(f"stored the vectors of {vectors['texts']} texts")
        return
    rows, answers = FILTER / "kept.jsonl", ANSWER_SIGNALS / item
    figures = capture_signals(
        ADAPT / item, rows, folder, capture, label=f"capture {item}", answers=answers
    )
    write_json(folder / "summary.json", figures)
    say(f"stored {figures['tokens']} tokens of {figures['rows']} rows")


def _at_client(item: str, client: Client) -> None:
    """Store the distributions of a client's teacher, which runs in the client's folder."""
    from cohobate.data.records import (
        ADAPT,
        ANSWER_SIGNALS,
        CAPTURE,
        FILTER,
        LABELLED,
        write_json,
    )
    from cohobate.progress import say

    client.check_model(item)
    public = (FILTER / "kept.jsonl", LABELLED, ANSWER_SIGNALS / item)
    given = {ADAPT / item: client.model, **{path: path for path in public}}
    traffic = client.run("capture", item, given, [CAPTURE / item])
    summary = CAPTURE / item / "summary.json"
    write_json(summary, json.loads(summary.read_bytes()) | traffic)
    say(f"{item}: {traffic['bytes_from_client']:,} bytes left the client, none of them of its rows")


def _labels(item: str, capture: CaptureParams, task: Task) -> dict[str, Any]:
    """Store the teacher's distributions over the task's labels."""
    from cohobate.data.records import CAPTURE, FILTER, LABELLED, Row, read_rows
    from cohobate.progress import say
    from cohobate.scoring.labels import LabelTexts
    from cohobate.teachers.signal_store.label_capture import capture_labels

    labels = LabelTexts.of_rows(read_rows(LABELLED, Row), task.verifier, str(LABELLED))
    figures = capture_labels(item, FILTER / "kept.jsonl", CAPTURE / item, capture, labels)
    count = len(labels.texts)
    say(f"stored the distributions of {figures['rows']} prompts over {count} labels")
    return {"labels": count} | figures


def _served(item: str, teacher: Teacher, capture: CaptureParams) -> dict[str, Any]:
    """Store the signals of a teacher behind an endpoint."""
    from cohobate.backends.served_capture import ServedCapture
    from cohobate.backends.settings import GenerateParams
    from cohobate.data.records import CAPTURE, FILTER

    # limits, price, cap and ledger decide no bytes of the store: no input of this stage
    generate = validated(GenerateParams, load()["generate"], "generate")
    served = ServedCapture(item, capture, generate)
    return served.write(FILTER / "kept.jsonl", CAPTURE / item, teacher.unscored)
