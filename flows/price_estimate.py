"""Estimate of money: what teachers behind endpoints will cost, before a round starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cohobate.backends.endpoint import Endpoint
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.prompts import keeps_answer, prompt_files, prompt_rows
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import Conversation, Template, template_of
from cohobate.data.messages import Prompt
from cohobate.data.records import TEST, Row, read_rows
from cohobate.teachers.teacher import Teacher
from tasks.evaluate.settings import EvaluateParams


def estimate_prices(
    teachers: Mapping[str, Teacher],
    generate: GenerateParams,
    evaluate: EvaluateParams,
    root: Path,
) -> Iterator[str]:
    """Yield a line on the cost of each teacher behind an endpoint; the ledger is not considered.

    Args:
        teachers: by key.
        generate: which prompts they answer, and their prices.
        evaluate: names the teacher that also answers the test prompts.
        root: the project, whose collected rows are the prompts.
    """
    for key, teacher in teachers.items():
        backend = generate.backend_of(key)
        if not teacher.endpoint or not isinstance(backend, Endpoint):
            continue
        if backend.price is None:
            yield f"{key}: no price is set (generate.backend.price), so there is no estimate"
            continue
        template = template_of(generate.template)
        there = all(path.exists() for path in prompt_files(generate.prompts, root))
        if not template.roots and not there:
            yield f"{key}: the cost can be estimated once the prompts are collected"
            continue
        share = backend.price.batch if isinstance(backend, OpenAIBatch) else 1.0
        prompts = _prompts(template, generate, root)
        yield f"{key}: {backend.price.estimate(prompts, backend.billed(generate.decoding), share)}"
        if key == evaluate.teacher and (root / TEST).exists():
            decoding = backend.billed(evaluate.decoding)
            estimate = backend.price.estimate(_test_prompts(evaluate, root), decoding, share)
            yield f"{key}, for the test: {estimate}"


def _prompts(template: Template, generate: GenerateParams, root: Path) -> Iterator[Prompt]:
    """Yield the first request for each row, once for each step and sample."""
    rows = prompt_rows(generate, template, root)
    for row in (row for row in rows if not keeps_answer(generate, row)):
        for sample in range(generate.samples):
            prompt = template.steps[0].prompt_for(Conversation(row, sample), ())
            yield from [prompt] * len(template.steps)


def _test_prompts(evaluate: EvaluateParams, root: Path) -> list[Prompt]:
    """Return the test prompts and their variants, each once, as the ledger stores them."""
    rows = list(read_rows(root / TEST, Row))
    variants = [row for _, row in evaluate.robustness.variants(rows)]
    own = evaluate.teacher_reads == "teacher_prompt"
    prompts = (row.prompt_of_teacher if own else row.prompt for row in [*rows, *variants])
    return [*dict.fromkeys(prompts)]
