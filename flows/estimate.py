"""What the teachers behind endpoints will cost, told before a round starts."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from tasks.generate.endpoint import Endpoint
from tasks.generate.openai_batch import OpenAIBatch
from tasks.generate.prices import Prompt
from tasks.generate.stage import GenerateParams
from tasks.generate.templates import Exchange, Template, template_of
from tasks.rows.records import UNLABELLED, Row, read_rows, row_id
from tasks.teachers import Teacher


def outlooks(
    teachers: Mapping[str, Teacher], generate: GenerateParams, root: Path
) -> Iterator[str]:
    """Yield a line for each teacher that has a price; what the ledger holds is not taken off."""
    for key, teacher in teachers.items():
        backend = generate.backend_of(key)
        if not teacher.endpoint or not isinstance(backend, Endpoint):
            continue
        if backend.price is None:
            yield f"{key}: no price is given (generate.backend.price), so no estimate"
            continue
        template = template_of(generate.template)
        if not template.roots and not (root / UNLABELLED).exists():
            yield f"{key}: what it costs can be said once the prompts are collected"
            continue
        share = backend.price.batch if isinstance(backend, OpenAIBatch) else 1.0
        prompts = _prompts(template, generate, root)
        yield f"{key}: {backend.price.outlook(prompts, generate.decoding, share)}"


def _prompts(template: Template, generate: GenerateParams, root: Path) -> Iterator[Prompt]:
    """Yield the first question about each row, as often as there are steps and samples."""
    made_up = (Row(id=row_id(text), prompt=text) for text in template.roots)
    rows = made_up if template.roots else read_rows(root / UNLABELLED, Row)
    for row in islice(rows, generate.rows):
        for sample in range(generate.samples):
            asked = template.steps[0].ask(Exchange(row, sample), ())
            yield from [asked] * len(template.steps)
