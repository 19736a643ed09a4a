"""Prompts for a teacher: collected rows, or the root prompts of a template."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from cohobate.backends.settings import GenerateParams, PromptChoice
from cohobate.backends.templates import Template
from cohobate.data.messages import prompt_text
from cohobate.data.records import LABELLED, UNLABELLED, Row, read_rows, row_id

_POOL = 1000  # prompts that `seeds` draws from
_FILES = {"unlabelled": [UNLABELLED], "labelled": [LABELLED], "both": [LABELLED, UNLABELLED]}


def prompt_files(chosen: PromptChoice, root: Path = Path()) -> list[Path]:
    """Return the files of the chosen prompts, in order."""
    return [root / path for path in _FILES[chosen]]


def prompt_rows(
    teacher: str | None, generate: GenerateParams, template: Template, root: Path = Path()
) -> Iterator[Row]:
    """Yield the rows to answer: the template's root prompts, or the collected rows.

    Those of one teacher, or of all where none is named.
    """
    roots = (Row(id=row_id(root), prompt=root) for root in template.roots)
    files = prompt_files(generate.prompts, root)
    collected = chain.from_iterable(read_rows(path, Row) for path in files)
    chosen = islice(roots if template.roots else collected, generate.rows)
    return (row for row in chosen if teacher is None or generate.goes_to(teacher, row.task))


def seed_pool(
    teacher: str, generate: GenerateParams, template: Template, root: Path = Path()
) -> list[str]:
    """Return the prompts that the template's `seeds` draws from: the first of those to answer.

    They are as the teacher reads them.
    """
    rows = islice(prompt_rows(teacher, generate, template, root), _POOL)
    return [prompt_text(row.teacher_prompt or row.prompt) for row in rows]


def keeps_answer(generate: GenerateParams, row: Row) -> bool:
    """Return whether a row's reference answer becomes the response, without a request."""
    return generate.reference_answers == "keep" and row.answer is not None


def count_prompts(teacher: str, generate: GenerateParams, template: Template) -> int:
    """Return how many rows of `prompt_rows` the teacher answers.

    The rows themselves are read only where they go to different teachers: all labelled rows have a
    reference answer, which can be kept.
    """
    if generate.routes:
        rows = prompt_rows(teacher, generate, template)
        return sum(not keeps_answer(generate, row) for row in rows)
    if template.roots:
        return len(template.roots[: generate.rows])
    lines = {path: _lines_of(path) for path in prompt_files(generate.prompts)}
    count = sum(lines.values())
    kept = lines.get(LABELLED, 0) if generate.reference_answers == "keep" else 0
    # the labelled rows come first
    return max(0, min(count, generate.rows or count) - kept)


def _lines_of(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
