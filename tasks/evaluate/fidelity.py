"""Fidelity: how close a student's next-token distributions are to the teacher's.

Measured on the teacher's own answers to test prompts and on the student's, by running both models;
or on the distributions that `capture` stored, where the teacher's weights are not needed.
Tensors: C outcomes are the K stored ids and, as one, all others.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from cohobate.data.records import CAPTURE, FILTER, Response, read_rows
from cohobate.data.tokenized import Encoded, encode_all
from cohobate.errors import UserError
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.evaluation.answer_logprobs import AnswerLogprobs


class AnswerTexts(NamedTuple):
    """The same answers, encoded after each model's own prompts: prefixes can differ."""

    teacher: Sequence[Encoded]
    student: Sequence[Encoded]


class TokenAgreement(Section):
    """Agreement of a student with the teacher on one set of texts: means over the tokens."""

    top1_agreement: float
    """Share of the tokens at which both models rank the same token first."""
    top_k_overlap: float
    """Share of the teacher's K likeliest tokens that are among the student's."""
    kl: float
    """KL(teacher ‖ student) in nats per token: high where the student misses likely tokens."""
    reverse_kl: float
    """KL(student ‖ teacher): high where the student prefers tokens unlikely for the teacher."""
    tokens: int
    """Number of tokens compared."""


class Fidelity(TokenAgreement):
    """Agreement on the teacher's answers, and on the student's own."""

    student_text: TokenAgreement | None = None
    """None where the teacher cannot be run on it."""


class LiveFidelity(Section):
    """Compares with the teacher's checkpoint, on both models' answers to test prompts."""

    type: Literal["live"] = "live"
    top_k: int = Field(10, ge=1)
    """Number of likeliest tokens compared."""

    def compare(
        self,
        teacher: "AnswerLogprobs",
        student: "AnswerLogprobs",
        teacher_texts: AnswerTexts,
        student_texts: AnswerTexts,
        name: str,
    ) -> Fidelity:
        """Compare two models of one vocabulary on the teacher's answers, and on the student's."""
        teacher.compute([*teacher_texts.teacher, *student_texts.teacher])
        student.compute([*teacher_texts.student, *student_texts.student])
        own = self._on(teacher, student, student_texts) if student_texts.student else None
        on_teacher = self._on(teacher, student, teacher_texts)
        return Fidelity(**on_teacher.model_dump(), student_text=own)

    def _on(
        self, teacher: "AnswerLogprobs", student: "AnswerLogprobs", texts: AnswerTexts
    ) -> TokenAgreement:
        totals = _Totals(self.top_k)
        pairs = zip(
            teacher.log_probs(teacher.hidden(texts.teacher)),
            student.log_probs(student.hidden(texts.student)),
            strict=True,
        )
        for (_, p_NV), (_, q_NV) in pairs:
            # a small vocabulary has fewer than top_k ids
            k = min(self.top_k, p_NV.shape[-1])
            totals.add(p_NV, q_NV, p_NV.topk(k).indices, q_NV.topk(k).indices)
        return totals.agreement()


class StoredFidelity(Section):
    """Compares with the distributions that `capture` stored, on rows of the training data."""

    type: Literal["stored"]
    rows: int = Field(256, ge=1)
    """Rows of data/filter/kept.jsonl, drawn at random."""
    seed: int = 0
    """Seed of the draw."""
    top_k: int = Field(10, ge=1)
    """Number of likeliest tokens compared; at most as many as were stored."""

    def compare(
        self,
        teacher: "AnswerLogprobs",
        student: "AnswerLogprobs",
        teacher_texts: AnswerTexts,
        student_texts: AnswerTexts,
        name: str,
    ) -> Fidelity:
        """Compare a student with the stored distributions of the teacher `name`.

        Raises:
            UserError: nothing is stored of this teacher, or for another tokenizer.
        """
        from cohobate.data.examples import examples_of
        from cohobate.losses.top_k import TopK
        from cohobate.teachers.signal_store.store import SignalStore

        store = SignalStore(CAPTURE / name)
        rows = self._rows(FILTER / "kept.jsonl", name)
        texts = list(encode_all(student.tokenizer, rows))
        examples = store.attach(examples_of(rows, texts), student.tokenizer)
        top = store.targets(store.read([e.signal for e in examples]))
        if not isinstance(top, TopK):
            raise UserError(
                "only stored signals of the form top_k can be compared with a student",
                where=str(CAPTURE / name),
                fix="evaluate.fidelity: {type: live}, or capture.signals: {type: top_k, ...}",
            )
        # stored in the order of the ids: here the likeliest come first
        likeliest_NK = top.ids_NK.gather(-1, top.logp_NK.argsort(dim=-1, descending=True))
        # temperature 1; "bucket": all ids that are not stored are one outcome
        p_NC, totals = top.outcomes(1.0, "bucket"), _Totals(self.top_k)
        k = min(self.top_k, top.ids_NK.shape[-1])
        for chunk, q_NV in student.log_probs(student.hidden(texts)):
            ids_NK = top.ids_NK[chunk].to(q_NV.device)
            q_NC = _outcomes(q_NV, ids_NK)
            first_NK = likeliest_NK[chunk, :k].to(q_NV.device)
            totals.add(p_NC[chunk].to(q_NV.device), q_NC, first_NK, q_NV.topk(k).indices)
        return Fidelity(**totals.agreement().model_dump())

    def _rows(self, path: Path, name: str) -> list[Response]:
        from cohobate.data.examples import row_key
        from cohobate.teachers.signal_store.missing import missing_keys

        missing = missing_keys(CAPTURE / name)
        rows = [
            row
            for row in read_rows(path, Response)
            if row.teacher == name and row_key(row) not in missing
        ]
        random.Random(self.seed).shuffle(rows)
        return rows[: self.rows]


class _Totals:
    """Sums over the tokens compared so far."""

    def __init__(self, top_k: int) -> None:
        self.top_k, self.tokens = top_k, 0
        self.same = self.overlap = self.kl = self.reverse_kl = 0.0

    def add(self, p_NC: "Tensor", q_NC: "Tensor", top_p_NK: "Tensor", top_q_NK: "Tensor") -> None:
        """Add tokens: log-probabilities of both models, and their likeliest ids."""
        difference_NC = p_NC - q_NC
        self.kl += float((p_NC.exp() * difference_NC).sum())
        # KL(q ‖ p) = Σ q (log q − log p), and the difference is log p − log q
        self.reverse_kl -= float((q_NC.exp() * difference_NC).sum())
        self.same += float((top_p_NK[:, 0] == top_q_NK[:, 0]).sum())
        # ids in both lists, whatever their rank: at most one match a row and column
        match_NKK = top_p_NK[:, :, None] == top_q_NK[:, None, :]
        self.overlap += float(match_NKK.sum()) / top_p_NK.shape[1]
        self.tokens += len(p_NC)

    def agreement(self) -> TokenAgreement:
        """Return the means."""
        return TokenAgreement(
            top1_agreement=round(self.same / self.tokens, 6),
            top_k_overlap=round(self.overlap / self.tokens, 6),
            kl=round(self.kl / self.tokens, 6),
            reverse_kl=round(self.reverse_kl / self.tokens, 6),
            tokens=self.tokens,
        )


def _outcomes(q_NV: "Tensor", ids_NK: "Tensor") -> "Tensor":
    """Return the student's log-probabilities of the K ids and of all others as one, (N, C)."""
    import torch

    q_NK = q_NV.gather(1, ids_NK)
    # double: the rest may be much smaller than the rounding of the sum
    rest_N1 = (1 - q_NK.double().exp().sum(-1, keepdim=True)).clamp_min(1e-30).log()
    return torch.cat([q_NK, rest_N1.float()], -1)


AnyFidelity = Annotated[LiveFidelity | StoredFidelity, Field(discriminator="type")]
