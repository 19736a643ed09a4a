"""Estimate of money: what teachers behind endpoints will cost, before a round starts."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from cohobate.backends.endpoint import Endpoint
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.prices import ScoredText
from cohobate.backends.prompts import keeps_answer, prompt_files, prompt_rows, seed_pool
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import Conversation, Template, template_of
from cohobate.data.messages import Prompt
from cohobate.data.records import TEST, Row, read_rows
from cohobate.teachers.teacher import Teacher
from tasks.evaluate.settings import EvaluateParams

if TYPE_CHECKING:
    from cohobate.methods.on_policy import OnPolicy


def estimate_prices(
    teachers: Mapping[str, Teacher],
    generate: GenerateParams,
    evaluate: EvaluateParams,
    root: Path,
    *,
    phases: "Mapping[str, OnPolicy]" = MappingProxyType({}),
    seeds: int = 1,
) -> Iterator[str]:
    """Yield lines on the cost of each teacher behind an endpoint; the ledger is not considered.

    Args:
        teachers: by key.
        generate: which prompts they answer, and their prices.
        evaluate: names the teacher that also answers the test prompts.
        root: the project, whose collected rows are the prompts.
        phases: those of on_policy, by their keys in params.yaml: teachers score their text.
        seeds: how often each phase is trained.
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
        prompts = _prompts(key, template, generate, root)
        yield f"{key}: {backend.price.estimate(prompts, backend.billed(generate.decoding), share)}"
        if key == evaluate.teacher and (root / TEST).exists():
            decoding = backend.billed(evaluate.decoding)
            estimate = backend.price.estimate(_test_prompts(evaluate, root), decoding, share)
            yield f"{key}, for the test: {estimate}"
        if teacher.served_signals and teacher.scoring != "none":
            rows = _rows_for_capture(key, teacher, generate, template, root)
            yield f"{key}, for capture: {backend.price.estimate_scoring(rows)}"
            for name, phase in phases.items():
                if phase.targets == f"models/adapt/{key}":
                    rows = _rows_of_phase(phase, [*_prompts(key, template, generate, root)], seeds)
                    yield f"{key}, for {name}: {backend.price.estimate_scoring(rows)}"


def _prompts(
    key: str, template: Template, generate: GenerateParams, root: Path
) -> Iterator[Prompt]:
    """Yield the first request for each row, once for each step and sample."""
    rows = prompt_rows(key, generate, template, root)
    pool = seed_pool(key, generate, template, root)
    for row in (row for row in rows if not keeps_answer(generate, row)):
        for sample in range(generate.attempts):
            prompt = template.steps[0].prompt_for(Conversation(row, sample), pool)
            yield from [prompt] * len(template.steps)


def _test_prompts(evaluate: EvaluateParams, root: Path) -> list[Prompt]:
    """Return the test prompts and their variants, each once, as the ledger stores them."""
    rows = list(read_rows(root / TEST, Row))
    variants = [row for _, row in evaluate.robustness.variants(rows)]
    own = evaluate.teacher_reads == "teacher_prompt"
    prompts = (row.prompt_of_teacher if own else row.prompt for row in [*rows, *variants])
    return [*dict.fromkeys(prompts)]


def _rows_for_capture(
    key: str, teacher: Teacher, generate: GenerateParams, template: Template, root: Path
) -> Iterator[ScoredText]:
    """Yield the rows whose signals do not come with the teacher's answers.

    They are reference answers that are kept, and what other teachers answer. Where a template has
    several steps, or the answers are of another temperature, they are all rows.
    """
    signals, most = teacher.served_signals, generate.decoding.max_tokens
    own = signals is not None and signals.come_with(generate.decoding) and len(template.steps) == 1
    for row in prompt_rows(None, generate, template, root):
        if keeps_answer(generate, row):
            yield ScoredText.given(row.prompt_of_teacher, row.full_answer)
        elif not (own and generate.goes_to(key, row.task)):
            yield from [ScoredText(row.prompt_of_teacher, most, most)] * generate.attempts


def _rows_of_phase(
    phase: "OnPolicy", prompts: Sequence[Prompt], seeds: int
) -> Iterator[ScoredText]:
    """Yield the rows that a phase has scored: each answer of the student, and each given one once.

    The prompts stand for the phase's rows, which the filters have not chosen yet.
    """
    if not prompts:
        return
    most = phase.sampling.decoding.max_tokens
    answers = phase.updates_over(len(prompts)) * phase.batch_size
    share = phase.student_text.share if phase.student_text.type == "constant" else 1.0
    generated = round(share * answers) * seeds
    given = min(len(prompts), answers - round(share * answers))
    for prompt in islice(cycle(prompts), generated + given):
        yield ScoredText(prompt, most, most)
