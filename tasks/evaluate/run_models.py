"""Evaluator: every model answers the test rows and is compared with the teacher."""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.backends.settings import GenerateParams
from cohobate.data.reasoning import inline_cut
from cohobate.data.records import Row, write_rows
from cohobate.data.tokenized import Encoded, encode_all
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import is_judged
from cohobate.evaluation.drafting import Drafting
from cohobate.evaluation.footprint import footprint
from cohobate.generation.requests import Answer
from cohobate.models.seeing import is_seeing
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from tasks.evaluate import predictions
from tasks.evaluate.arms import Arm
from tasks.evaluate.fidelity import AnswerTexts
from tasks.evaluate.judging import judge_predictions, say_mean, variant_scores
from tasks.evaluate.models_under_test import EndpointTeacher, LoadedModel
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.robustness import PERTURBED, PERTURBED_ROLES, Variant
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import ModelResults
from tasks.evaluate.token_counts import (
    write_billed_tokens,
    write_pass_counts,
    write_token_counts,
)

if TYPE_CHECKING:
    from torch import Tensor


class Evaluator:
    """Runs all models on the same rows, with the same decoding."""

    def __init__(
        self,
        params: EvaluateParams,
        task: Task,
        rows: list[Row],
        generate: GenerateParams,
    ) -> None:
        self._teacher_cosines: Tensor | None = None  # of an embedder; the teacher runs first
        self._context = 0  # mean length of a prompt, in tokens of the first model with weights
        self.params, self.task, self.rows, self.generate = params, task, rows, generate

    def run(self, arms: Sequence[Arm]) -> dict[str, ModelResults]:
        """Run every model, write its answers, and return its other measurements, by arm.

        The teacher, the first arm, runs first and stays in memory; the others are loaded one at a
        time.
        """
        teacher_arm, *student_arms = arms
        results = {arm.name: ModelResults() for arm in arms}
        teacher, teacher_texts = None, list[Encoded]()
        if teacher_arm.has_weights:
            teacher = self._load(teacher_arm.checkpoints[0], "teacher")
            teacher_texts = self._run_checkpoint(teacher_arm, 0, teacher, results[teacher_arm.name])
        elif self.params.likelihood_metric:
            raise UserError(
                "the teacher is behind an endpoint: it gives no likelihood of a text",
                where=f"params.yaml, teachers.{self.params.teacher}",
                fix="cohobate run --set 'evaluate.metrics=[{type: verifier}]', or a teacher whose "
                "weights are here",
            )
        else:
            self._run_answers(teacher_arm, results[teacher_arm.name])
        for arm in student_arms:
            for seed in arm.checkpoints:
                self._run_student(arm, seed, teacher, teacher_texts, results[arm.name])
        teacher = None  # a judge on this machine needs the memory
        judge_predictions(self.params, self.task, arms, self.rows)
        self._write_variants({arm.role: results[arm.name] for arm in arms})
        return results

    def _run_student(
        self,
        arm: Arm,
        seed: int,
        teacher: LoadedModel | None,
        teacher_texts: Sequence[Encoded],
        results: ModelResults,
    ) -> None:
        """Run one student and compare it with the teacher; it is no longer in memory afterwards."""
        student = self._load(arm.checkpoints[seed])
        texts = self._run_checkpoint(arm, seed, student, results)
        if teacher and teacher_texts and _compares(teacher, student):
            # the untrained student's own answers say nothing about fidelity
            own = [] if arm.role == "initial" or self._is_raw else texts
            results.fidelity[seed] = self.params.fidelity.compare(
                teacher.logprobs,
                student.logprobs,
                AnswerTexts(teacher_texts, _join_prompts_and_answers(texts, teacher_texts)),
                AnswerTexts(_join_prompts_and_answers(teacher_texts[: len(own)], own), own),
                self.params.teacher,
            )

    def time(self, arms: Mapping[str, Arm]) -> dict[str, Any]:
        """Measure the models whose weights are here, in turns, on prompts of the test."""
        loaded = {
            role: self._load(next(iter(arm.checkpoints.values())), role)
            for role, arm in arms.items()
        }
        # both in memory at once, and measured in turns: a busy machine slows both alike
        rows = self.rows[: self.params.timing.batch]
        prompts = {role: model.prompt_ids(rows) for role, model in loaded.items()}
        models = {role: model.model for role, model in loaded.items()}
        timings = self.params.timing.measure(models, prompts)
        if self.params.timing.draft:
            timings["draft"] = self._drafted(self.params.timing.draft, loaded)
        return {**timings, "precision": self.params.number_format}

    def _drafted(self, draft: Drafting, loaded: Mapping[str, LoadedModel]) -> dict[str, Any]:
        """Measure the student as the draft of its teacher, or say why not."""
        teacher, student = loaded.get("teacher"), loaded["student"]
        if teacher is None:
            return {"why_not": "the teacher's weights are not here"}
        causal = all(one.model.can_generate() for one in (teacher, student))
        if not (causal and _compares(teacher, student)) or is_seeing(student.tested.folder):
            return {"why_not": "teacher and student are not two causal models of one vocabulary"}
        prompts = teacher.prompt_ids(self.rows[: draft.rows])
        return draft.measure(teacher.model, student.model, teacher.tokenizer, prompts)

    def _load(self, folder: Path, role: str = "") -> LoadedModel:
        return LoadedModel.of(self.params, folder, role, self.rows)

    @cached_property
    def variants(self) -> list[tuple[str, Row]]:
        """The perturbed and out-of-distribution rows, each with the name of its variant."""
        # raw text has no prompt; and where a likelihood decides, answers have no score
        if self.params.likelihood_metric:
            return []
        return self.params.robustness.variants(self.rows)

    @cached_property
    def _is_raw(self) -> bool:
        """Whether no test row has a prompt: then no answer is generated."""
        return all(row.is_raw_text for row in self.rows)

    @cached_property
    def sample(self) -> list[int]:
        """Positions of the test rows for which token log-probabilities are computed."""
        positions = list(range(len(self.rows)))
        random.Random(self.params.seed).shuffle(positions)
        return positions[: self.params.reading_rows]

    def _run_checkpoint(
        self, arm: Arm, seed: int, model: LoadedModel, results: ModelResults
    ) -> list[Encoded]:
        """Run one checkpoint; return its own answers to the sample, encoded."""
        answers = model.answers(self.rows, f"{arm.called(seed)}: answering")
        varied = arm.role in PERTURBED_ROLES and bool(self.variants)
        if not varied:
            model.close()
        predicted = self._predictions(arm, seed, answers, model)
        if varied:
            results.variants[seed] = self._variant_answers(arm, model, predicted)
            # what follows loads the weights: nothing else may hold the device's memory then
            model.close()
        # the teacher's where it has weights: one length for the FLOPs of all models
        self._context = self._context or _mean_length(model, self.rows)
        results.footprint = footprint(model.model, arm.checkpoints[seed], self._context)
        if arm.role == "teacher":
            self._count_tokens(model, predicted)
        return self._token_figures(arm, seed, model, predicted, results)

    def _count_tokens(self, teacher: LoadedModel, predicted: Sequence[Prediction]) -> None:
        if teacher.scores_tokens:
            write_token_counts(teacher.tokenizer, _answered(self.rows, predicted))
        else:
            write_pass_counts(teacher.prompt_ids, self.rows, self.params.timing.new_tokens)

    def _token_figures(
        self,
        arm: Arm,
        seed: int,
        model: LoadedModel,
        predicted: Sequence[Prediction],
        results: ModelResults,
    ) -> list[Encoded]:
        """Measure what needs probabilities of tokens; return the own answers to the sample."""
        if not model.scores_tokens:
            return []
        rows = model.prefixed([self.rows[n] for n in self.sample])
        texts = _own_texts(model, rows, [predicted[n] for n in self.sample])
        references = list(encode_all(model.tokenizer, rows))
        # one batch for all that is needed below: the hidden states are cached
        model.logprobs.compute([*([] if arm.role == "initial" else texts), *references])
        results.model_metrics[seed] = self._model_metrics(model, rows, references)
        forgetting = self.params.forgetting
        results.general_loss[seed] = forgetting.measure(model.logprobs, forgetting.passages())
        return texts

    def _model_metrics(
        self, model: LoadedModel, rows: Sequence[Row], references: Sequence[Encoded]
    ) -> dict[str, float]:
        """Return the metrics that need the model, each on the rows of its tasks."""
        figures = {}
        for metric in self.params.model_metrics:
            pairs = zip(rows, references, strict=True)
            scored = [(row, text) for row, text in pairs if metric.scores_task(row.task)]
            if not scored:
                continue
            own_rows, texts = map(list, zip(*scored, strict=True))
            figure = metric.measure(model.logprobs, own_rows, texts, self.task)
            if figure is not None:
                figures[metric.type] = round(figure, 6)
        return figures

    def _run_answers(self, arm: Arm, results: ModelResults) -> None:
        """Evaluate the answers alone of a teacher whose weights are not loaded."""
        teacher: EndpointTeacher | LoadedModel = EndpointTeacher(self.params, self.generate)
        if not arm.is_served:
            teacher = self._load(arm.checkpoints[0], "teacher")
        answers = teacher.answers(self.rows, f"{arm.name}: answering")
        predicted = self._predictions(arm, 0, answers)
        results.variants[0] = self._variant_answers(arm, teacher, predicted)
        if isinstance(teacher, LoadedModel):
            teacher.close()
            write_token_counts(teacher.tokenizer, _answered(self.rows, predicted))
        else:
            write_billed_tokens(self.generate.backend_of(self.params.teacher), answers)

    def _predictions(
        self, arm: Arm, seed: int, answers: Sequence[Answer], model: LoadedModel | None = None
    ) -> list[Prediction]:
        """Score the answers of one checkpoint, and write them."""
        metrics, likelihood = self.params.plain_metrics, self.params.likelihood_metric
        rows = list(predictions.scored(self.rows, answers, metrics, self.task))
        if likelihood and model:
            losses = model.losses(self.rows, likelihood)
            rows = predictions.with_losses(rows, losses, likelihood)
            say(f"{arm.called(seed)}: {losses.figure(likelihood):.3f}")
        else:
            rows = self._with_similarity(rows, model)
            if not is_judged(self.params.answer_metrics[0]):
                say_mean(arm.called(seed), rows, metrics[0].type)
        predictions.write(arm, seed, rows)
        return rows

    def _with_similarity(
        self, rows: list[Prediction], model: LoadedModel | None
    ) -> list[Prediction]:
        """Add to an embedder's rankings how its similarities agree with the teacher's."""
        cosines_RC = model.cosines(self.rows) if model else None
        if cosines_RC is None:
            return rows
        if self._teacher_cosines is None:
            self._teacher_cosines = cosines_RC
        return predictions.with_similarity(rows, self._teacher_cosines, cosines_RC)

    def _variant_answers(
        self, arm: Arm, model: LoadedModel | EndpointTeacher, predicted: Sequence[Prediction]
    ) -> list[str]:
        """Return the answers to the variants; unchanged prompts are not answered again."""
        # a perturbation may change nothing, such as upper case of digits
        answers = {row.full_prompt: p.answer for row, p in zip(self.rows, predicted, strict=True)}
        rows = [row for _, row in self.variants if row.full_prompt not in answers]
        generated = model.answers(rows, f"{arm.name}: other prompts")
        answers |= {
            row.full_prompt: answer.full_text for row, answer in zip(rows, generated, strict=True)
        }
        return [answers[row.full_prompt] for _, row in self.variants]

    def _write_variants(self, by_role: Mapping[str, ModelResults]) -> None:
        if not self.variants:
            write_rows(PERTURBED, [])
            return
        answers_ZR = {role: [*by_role[role].variants.values()] for role in PERTURBED_ROLES}
        own = [row for _, row in self.variants]
        scores_ZR = variant_scores(self.params, self.task, own, answers_ZR)
        rows = [
            Variant(
                variant=name,
                id=row.id,
                prompt=row.prompt,
                answers={role: [texts[n] for texts in seeds] for role, seeds in answers_ZR.items()},
                scores={role: [each[n] for each in seeds] for role, seeds in scores_ZR.items()},
            )
            for n, (name, row) in enumerate(self.variants)
        ]
        write_rows(PERTURBED, rows)


def _mean_length(model: LoadedModel, rows: Sequence[Row]) -> int:
    """Return the mean length of a prompt, in the tokens of a model."""
    lengths = [len(ids) for ids in model.prompt_ids(rows)]
    return max(1, round(sum(lengths) / len(lengths)))


def _own_texts(
    model: LoadedModel, rows: Sequence[Row], predicted: Sequence[Prediction]
) -> list[Encoded]:
    """Encode rows with a model's own answers; answers that were cut off get no end token.

    Raw text stands for itself.
    """
    encoded = encode_all(model.tokenizer, _answered(rows, predicted))
    return [
        text
        if own.finish == "stop"
        else Encoded.of(text.prompt_ids, text.completion_ids[:-1], text.images)
        for text, own in zip(encoded, predicted, strict=True)
    ]


def _join_prompts_and_answers(
    prompts: Sequence[Encoded], answers: Sequence[Encoded]
) -> list[Encoded]:
    """Put one model's answers after the prompts of another, whose prefix may differ."""
    pairs = zip(prompts, answers, strict=True)
    return [
        Encoded.of(prompt.prompt_ids, answer.completion_ids, prompt.images)
        for prompt, answer in pairs
    ]


def _answered(rows: Sequence[Row], predicted: Sequence[Prediction]) -> list[Row]:
    pairs = zip(rows, predicted, strict=True)
    return [
        row if row.is_raw_text else row.model_copy(update=_own_answer(own)) for row, own in pairs
    ]


def _own_answer(own: Prediction) -> dict[str, str | None]:
    """Return the fields of a row that hold an answer, filled with a model's own."""
    fields = {"answer": own.answer, "reasoning": own.reasoning, "tool_calls": None, "learn": None}
    if own.finish == "length" and own.reasoning and not own.answer:
        fields |= {"answer": inline_cut(own.reasoning), "reasoning": None}
    return fields


def _compares(one: LoadedModel, other: LoadedModel) -> bool:
    """Say whether the token distributions of two models are over one vocabulary."""
    if not (one.scores_tokens and other.scores_tokens):
        return False
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
