"""Tune the teacher to the task on the labelled rows, or copy it unchanged.

In:  the teacher's model as preflight pinned it (data/preflight/teachers), data/collect
Out: models/adapt/<teacher>, a checkpoint (cohobate/models/checkpoints.py), and its summary.json:

    {"dev_rows": 500, "dev_score": 0.802, "number_format": "bfloat16", "rows": 1000,
     "tuned": true}

Of a teacher behind an endpoint, whose weights are not here, the folder holds endpoint.json alone:

    {"key": "EXAMPLE_API_KEY", "model": "large-1", "revision": "", "url":
    "https://api.example.com/v1"}

and, where it gives log-probabilities (`signals: true`), which ones and the tokenizer beside it.

Of a client's teacher, whose weights stay in the client's folder, it holds client.json alone
(cohobate/teachers/clients.py):

    {"bytes_of_weights": 269060552, "fingerprint": "6b1f…", "rows": 400}
"""

import json
import shutil
from itertools import islice
from statistics import fmean
from typing import Annotated, Any

from cohobate.data.records import (
    ADAPT,
    DEV,
    ENDPOINT,
    LABELLED,
    PIN,
    TEACHERS,
    TOKENIZER,
    Row,
    read_rows,
    write_json,
)
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import AnswerScorer, DecidingMetric
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.methods.teacher_tuning import Tuning, tuning_of
from cohobate.models import checkpoints
from cohobate.models.chat_templates import check_turns
from cohobate.models.number_formats import resolve
from cohobate.models.template_facts import check_content
from cohobate.params import EachOf
from cohobate.progress import say, track
from cohobate.scoring.metrics import AnswerScore, LikelihoodScore, refuse_raw_text
from cohobate.scoring.verifiers import Task
from cohobate.teachers.clients import Client
from cohobate.teachers.teacher import Teacher


def run(
    item: str,
    teacher: Annotated[Teacher, EachOf("teachers")],
    adapt: Tuning,
    task: Task,
    metric: DecidingMetric,
) -> None:
    """Write the teacher `item`, tuned if configured, and score it on the dev rows.

    Raises:
        UserError: the model differs from what preflight pinned, or tuning failed.
    """
    if teacher.client:
        _at_client(item, teacher.client)
        return
    pinned = json.loads((TEACHERS / item / PIN).read_bytes())
    pin, folder = pinned["teacher"], ADAPT / item
    adapt = tuning_of(adapt, item, teacher)
    _check_conversations(item, pinned)
    if teacher.endpoint:
        _describe(item, teacher, adapt)
        return
    provenance = {
        "model": pin["model"],
        "revision": pin["revision"],
        "fingerprint": pin["fingerprint"],
        "licence": pin["licence"],
        "adapt": adapt.model_dump(mode="json"),
    }
    source, label = teacher.folder(pin), f"adapt {item}"
    rows = adapt.publish(source, teacher, folder, provenance, label=label, task=task)
    # what a masked model predicts is no answer yet
    scored = {} if teacher.kind == "masked" else _dev_score(item, adapt, task, metric)
    write_json(folder / "summary.json", {"tuned": rows > 0, "rows": rows, **scored})
    if scored:
        say(f"{item}: {scored['dev_score']:.3f} on {scored['dev_rows']} dev rows")


def _at_client(item: str, client: Client) -> None:
    """Tune the teacher of a client in the client's folder, where its rows and weights stay."""
    if not client.rows.is_file():
        raise UserError(
            f"the client {item} has no rows",
            where=str(client.rows),
            fix="its rows with answers, as in data/collect/labelled.jsonl; those of "
            "recipes/federated.yaml: python -m benchmarks.clients",
        )
    folder, summary = ADAPT / item, ADAPT / item / "summary.json"
    shutil.rmtree(folder, ignore_errors=True)
    pin = TEACHERS / item / PIN
    given = {pin: pin, DEV: DEV, LABELLED: client.rows}
    traffic = client.run("adapt", item, given, [summary])
    figures = json.loads(summary.read_bytes())
    client.publish(item, figures["rows"])
    write_json(summary, figures | traffic)


def _check_conversations(item: str, pinned: dict[str, Any]) -> None:
    """Refuse rows that a chat template rejects, before any computation."""
    models = {
        f"the teacher {item}": pinned["teacher"],
        "the student": pinned["student"],
    }
    wheres = dict(
        zip(models, (f"params.yaml, teachers.{item}", "params.yaml, init_student"), strict=True)
    )
    for owner, model in models.items():
        turns, content = (model.get(f"refused_{kind}", []) for kind in ("turns", "content"))
        prompt_only = owner != "the student"
        for path in (LABELLED, DEV) if turns or content else ():
            for read in read_rows(path, Row):
                row = read.for_teacher() if prompt_only else read
                if not isinstance(row.prompt, str):
                    check_turns([(row.id, row.prompt)], turns, owner, wheres[owner])
                    check_content(row, content, owner, prompt_only=prompt_only)


def _describe(item: str, teacher: Teacher, adapt: Tuning) -> None:
    """Write the address of a teacher behind an endpoint."""
    if adapt.type != "none":
        raise UserError(
            f"the teacher {item} is behind an endpoint: it cannot be tuned",
            where="params.yaml, section adapt",
            fix="cohobate run --set 'adapt={type: none}'",
        )
    with checkpoints.staged(ADAPT / item) as partial:
        where = {"url": teacher.endpoint, "key": teacher.key}
        named: dict[str, Any] = {"model": teacher.model, "revision": teacher.revision}
        if signals := teacher.served_signals:
            named |= {"signals": signals._asdict()}
            # beside the address: `generate` and `capture` need the ids of its tokens
            checkpoints.copy_parts(TEACHERS / item / TOKENIZER, partial)
        write_json(partial / ENDPOINT, where | named)
    write_json(ADAPT / item / "summary.json", {"tuned": False, "rows": 0})


def _dev_score(
    item: str, adapt: Tuning, task: Task, metric: AnswerScore | LikelihoodScore
) -> dict[str, Any]:
    """Score the written teacher on dev rows; empty where none has an answer."""
    answered = (row.for_teacher() for row in read_rows(DEV, Row) if row.answer is not None)
    rows = list(islice(answered, adapt.dev_rows))
    if not rows:
        return {}
    device = checkpoints.accelerator()
    if isinstance(metric, LikelihoodScore):
        score = _likelihood(item, adapt, metric, rows)
    else:
        score = _mean_score(item, adapt, task, metric, rows)
    number_format = resolve(adapt.precision, device)
    return {"dev_score": round(score, 4), "dev_rows": len(rows), "number_format": number_format}


def _likelihood(item: str, adapt: Tuning, metric: LikelihoodScore, rows: list[Row]) -> float:
    from cohobate.evaluation.text_losses import TextLosses
    from cohobate.generation.likelihood import Likelihood

    likelihood = Likelihood.of(ADAPT / item, adapt.precision, adapt.threads)
    return TextLosses.of(likelihood, rows, metric).figure(metric)


def _mean_score(
    item: str, adapt: Tuning, task: Task, metric: AnswerScore, rows: list[Row]
) -> float:
    refuse_raw_text(rows, metric.type, "dev")
    teacher = open_model(ADAPT / item, adapt.precision, adapt.dev_backend)
    # with the reasoning and the calls of tools that a row has, and the token that closes it
    longest = max(teacher.answer_units(rows))
    generated = teacher.with_documents(row.full_answer for row in rows).answers(
        [r.prompt for r in rows], Decoding(max_tokens=longest), threads=adapt.threads
    )
    texts = [""] * len(rows)
    tracked = track(generated, total=len(rows), label=f"{item} on dev rows", in_batches=True)
    for n, answer in tracked:
        texts[n] = answer.full_text
    teacher.close()
    # a win rate is over the reference answers: there is no other model yet
    return fmean(AnswerScorer(metric, task).scores(rows, texts, scored=item))
