"""A student that answers where it is sure enough, and hands other prompts on to its teacher."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

from cohobate.errors import UserError
from cohobate.serving.batched_model import TooLongError
from cohobate.serving.kept_prompts import KeptPrompts
from cohobate.serving.openai_api import AnsweringModel, NoTeacherError, Query, Served
from cohobate.serving.route_figures import FiguresFile


class PricedTeacher(AnsweringModel, Protocol):
    """A teacher of a route, and its money."""

    def value(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the US dollars that an answer of so many tokens costs."""
        ...

    def new_cost(self) -> float:
        """Return the US dollars that were paid since the last call."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class FreeTeacher:
    """A teacher on this machine: its answers cost no money."""

    def __init__(self, model: AnsweringModel) -> None:
        self._model = model

    def answers(self, query: Query) -> list[Served]:
        """Return the model's answers."""
        return self._model.answers(query)

    def value(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return 0."""
        return 0.0

    def new_cost(self) -> float:
        """Return 0."""
        return 0.0

    def close(self) -> None:
        """Do nothing: the model goes with the process."""


class RoutedModel:
    """A student and its teacher behind one address.

    Args:
        student: answers first.
        teacher: answers the prompts on which the student's confidence is below the threshold.
        threshold: least confidence, the mean probability a token; infinite: the student never
            answers.
        figures: counts who answered, and the money.
        kept: keeps prompts; None: none are.
        names: what `model` of a reply says of the one and the other.
        unsure: whether the student answers where the teacher does not; otherwise the request fails.
    """

    def __init__(
        self,
        student: AnsweringModel,
        teacher: PricedTeacher,
        threshold: float,
        figures: FiguresFile,
        *,
        kept: KeptPrompts | None = None,
        names: tuple[str, str] = ("student", "teacher"),
        unsure: bool = False,
    ) -> None:
        self.student, self.teacher, self.names = student, teacher, names
        self.threshold, self.figures, self.kept, self._unsure = threshold, figures, kept, unsure

    def answers(self, query: Query) -> list[Served]:
        """Return the answers of a query, each prompt's samples together.

        Raises:
            UserError: the student and the teacher cannot read a prompt, or log-probabilities are
                wanted.
            NoTeacherError: the student is not sure, and the teacher does not answer.
        """
        if query.top_logprobs is not None:
            raise UserError("logprobs are not served with --route", where="logprobs")
        own = self._by_student(query)
        doubtful = [n for n, answers in enumerate(own) if not self._is_sure(answers)]
        others = query._replace(prompts=[query.prompts[n] for n in doubtful])
        served = {n: self._named(answers, self.names[0]) for n, answers in enumerate(own)}
        without_teacher = False
        if doubtful:
            try:
                served |= dict(zip(doubtful, self._by_teacher(others), strict=True))
            except NoTeacherError:
                if not self._unsure or not all(own[n] for n in doubtful):
                    self._count(query, [], set(doubtful), failed=True)
                    raise
                without_teacher = True
                name = f"{self.names[0]}-unsure"
                served |= {n: self._named(own[n], name) for n in doubtful}
        answers = [served[n] for n in range(len(query.prompts))]
        self._count(query, answers, set(doubtful), failed=without_teacher)
        return [*chain.from_iterable(answers)]

    def close(self) -> None:
        """Write the figures, and release the ledger and the kept prompts."""
        self.teacher.close()
        self.figures.close()
        if self.kept:
            self.kept.close()

    def _by_student(self, query: Query) -> list[list[Served]]:
        """Return the student's answers to each prompt; none where a prompt is too long for it."""
        try:
            return _groups(self.student.answers(query), query.samples)
        except TooLongError:
            return [[] for _ in query.prompts]

    def _by_teacher(self, query: Query) -> list[list[Served]]:
        answers = _groups(self.teacher.answers(query), query.samples)
        return [self._named(group, self.names[1]) for group in answers]

    def _is_sure(self, answers: Sequence[Served]) -> bool:
        """Return whether every sample of a prompt reaches the threshold."""
        logprobs = [one.answer.logprob for one in answers]
        # rounded as the report's router has it
        return bool(answers) and all(
            logprob is not None and round(math.exp(logprob), 4) >= self.threshold
            for logprob in logprobs
        )

    def _named(self, answers: Sequence[Served], name: str) -> list[Served]:
        return [one._replace(model=name) for one in answers]

    def _count(
        self, query: Query, answers: Sequence[Sequence[Served]], doubtful: set[int], *, failed: bool
    ) -> None:
        kept = 0
        if self.kept:
            kept = sum(
                self.kept.add(prompt, handed_on=n in doubtful)
                for n, prompt in enumerate(query.prompts)
            )
        value = sum(
            self.teacher.value(one.prompt_tokens if n == 0 else 0, one.answer_tokens)
            for group in answers
            for n, one in enumerate(group)
        )
        self.figures.add(
            requests=len(answers),
            handed_on=0 if failed else len(doubtful),
            unsure=len(doubtful) if failed and answers else 0,
            kept=kept,
            cost=self.teacher.new_cost(),
            teacher_alone=value,
        )


def _groups(served: Sequence[Served], samples: int) -> list[list[Served]]:
    return [[*served[start : start + samples]] for start in range(0, len(served), samples)]
