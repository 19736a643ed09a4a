"""What the teachers behind endpoints will cost, told before a round starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cohobate.backends.endpoint import Endpoint
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.prices import Prompt
from cohobate.backends.prompts import prompt_files, prompt_rows
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import Conversation, Template, template_of
from cohobate.data.records import TEST, Row, read_rows
from cohobate.teachers.teacher import Teacher
from tasks.evaluate.settings import EvaluateParams


def estimate_prices(
    teachers: Mapping[str, Teacher],
    generate: GenerateParams,
    evaluate: EvaluateParams,
    root: Path,
) -> Iterator[str]:
    """Yield what each teacher that has a price will cost; what the ledger holds is not taken off.

    Args:
        teachers: by key.
        generate: what they are asked to teach.
        evaluate: one of them sits the test too.
        root: the project, whose collected rows are the prompts.
    """
    for key, teacher in teachers.items():
        backend = generate.backend_of(key)
        if not teacher.endpoint or not isinstance(backend, Endpoint):
            continue
        if backend.price is None:
            yield f"{key}: no price is given (generate.backend.price), so no estimate"
            continue
        template = template_of(generate.template)
        there = all(path.exists() for path in prompt_files(generate.prompts, root))
        if not template.roots and not there:
            yield f"{key}: what it costs can be said once the prompts are collected"
            continue
        share = backend.price.batch if isinstance(backend, OpenAIBatch) else 1.0
        prompts = _prompts(template, generate, root)
        yield f"{key}: {backend.price.estimate(prompts, backend.billed(generate.decoding), share)}"
        if key == evaluate.teacher and (root / TEST).exists():
            how = backend.billed(evaluate.decoding)
            told = backend.price.estimate(_of_the_test(evaluate, root), how, share)
            yield f"{key}, for the test: {told}"


def _prompts(template: Template, generate: GenerateParams, root: Path) -> Iterator[Prompt]:
    """Yield the first question about each row, as often as there are steps and samples."""
    for row in prompt_rows(generate, template, root):
        for sample in range(generate.samples):
            asked = template.steps[0].prompt_for(Conversation(row, sample), ())
            yield from [asked] * len(template.steps)


def _of_the_test(evaluate: EvaluateParams, root: Path) -> list[Prompt]:
    """Return the test's prompts and their variants, each once, as the ledger buys them."""
    rows = list(read_rows(root / TEST, Row))
    variants = [row for _, row in evaluate.robustness.variants(rows)]
    return [*dict.fromkeys(row.prompt for row in [*rows, *variants])]
