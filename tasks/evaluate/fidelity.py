"""How close a student's next-token distribution is to the teacher's, token by token.

On the teacher's own answers to test prompts (what it would say), and on the student's (where its
own words lead it). Or, where the teacher cannot be asked again, on what `capture` stored of it.

Shapes: N answer tokens, V vocabulary, K top-k, C outcomes (the K stored ids, and all others).
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

    from cohobate.evaluation.answer_logprobs import Reader


class Texts(NamedTuple):
    """Answers to the same prompts, as each of two models reads them: behind its own prefix."""

    teacher: Sequence[Encoded]
    student: Sequence[Encoded]


class Agreement(Section):
    """Agreement of a student with the teacher on some text, a mean over its tokens."""

    top1_agreement: float
    """Share of the tokens at which both models rank the same token first."""
    top_k_overlap: float
    """Share of the teacher's K likeliest tokens that are among the student's."""
    kl: float
    """KL(teacher ‖ student) in nats a token: high where it misses what the teacher says."""
    reverse_kl: float
    """KL(student ‖ teacher): high where it says what the teacher would not."""
    tokens: int
    """How many tokens were compared."""


class Fidelity(Agreement):
    """Agreement on the teacher's text, and beside it on the student's own."""

    student_text: Agreement | None = None
    """None where the teacher is not there to read it."""


class Live(Section):
    """The teacher's checkpoint reads along: its answers to test prompts, and the student's."""

    type: Literal["live"] = "live"
    top_k: int = Field(10, ge=1)
    """How many of the likeliest tokens are compared."""

    def compare(
        self,
        teacher: "Reader",
        student: "Reader",
        taught: Texts,
        own: Texts,
        name: str,
    ) -> Fidelity:
        """Compare two models of one vocabulary on the teacher's answers, and on the student's."""
        teacher.read([*taught.teacher, *own.teacher])
        student.read([*taught.student, *own.student])
        beside = self._on(teacher, student, own) if own.student else None
        return Fidelity(**self._on(teacher, student, taught).model_dump(), student_text=beside)

    def _on(self, teacher: "Reader", student: "Reader", texts: Texts) -> Agreement:
        tally = _Tally(self.top_k)
        pairs = zip(
            teacher.log_probs(teacher.hidden(texts.teacher)),
            student.log_probs(student.hidden(texts.student)),
            strict=True,
        )
        for (_, p_NV), (_, q_NV) in pairs:
            k = min(self.top_k, p_NV.shape[-1])
            tally.add(p_NV, q_NV, p_NV.topk(k).indices, q_NV.topk(k).indices)
        return tally.agreement()


class Stored(Section):
    """What `capture` stored of the teacher, on rows that the student learned from."""

    type: Literal["stored"]
    rows: int = Field(256, ge=1)
    """Rows of data/filter/kept.jsonl, drawn by chance."""
    seed: int = 0
    """Of the drawing."""
    top_k: int = Field(10, ge=1)
    """How many of the likeliest tokens are compared; no more than were stored."""

    def compare(
        self,
        teacher: "Reader",
        student: "Reader",
        taught: Texts,
        own: Texts,
        name: str,
    ) -> Fidelity:
        """Compare a student with the stored distributions of the teacher `name`.

        Raises:
            UserError: nothing is stored of this teacher, or for another tokenizer.
        """
        from cohobate.data.examples import examples_of
        from cohobate.losses.targets import TopK
        from cohobate.teachers.signal_store.store import SignalStore

        store = SignalStore(CAPTURE / name)
        rows = self._rows(FILTER / "kept.jsonl", name)
        texts = list(encode_all(student.tokenizer, rows))
        examples = store.attach(examples_of(rows, texts), student.tokenizer)
        top = store.targets(store.read([e.signal for e in examples]))
        if not isinstance(top, TopK):
            raise UserError(
                "only signals of the form top_k can be compared with a student",
                where=str(CAPTURE / name),
                fix="evaluate.fidelity: {type: live}, or capture.signals: {type: top_k, ...}",
            )
        likeliest_NK = top.ids_NK.gather(-1, top.logp_NK.argsort(dim=-1, descending=True))
        p_NC, tally = top.at(1.0, "bucket"), _Tally(self.top_k)
        k = min(self.top_k, top.ids_NK.shape[-1])
        for some, q_NV in student.log_probs(student.hidden(texts)):
            ids_NK = top.ids_NK[some].to(q_NV.device)
            q_NC = _outcomes(q_NV, ids_NK)
            first_NK = likeliest_NK[some, :k].to(q_NV.device)
            tally.add(p_NC[some].to(q_NV.device), q_NC, first_NK, q_NV.topk(k).indices)
        return Fidelity(**tally.agreement().model_dump())

    def _rows(self, path: Path, name: str) -> list[Response]:
        rows = [row for row in read_rows(path, Response) if row.teacher == name]
        random.Random(self.seed).shuffle(rows)
        return rows[: self.rows]


class _Tally:
    """Adds up what is compared."""

    def __init__(self, top_k: int) -> None:
        self.top_k, self.tokens = top_k, 0
        self.same = self.overlap = self.kl = self.reverse = 0.0

    def add(self, p_NC: "Tensor", q_NC: "Tensor", top_p_NK: "Tensor", top_q_NK: "Tensor") -> None:
        """Add some tokens: log-probabilities of the outcomes, and the likeliest ids."""
        apart_NC = p_NC - q_NC
        self.kl += float((p_NC.exp() * apart_NC).sum())
        self.reverse -= float((q_NC.exp() * apart_NC).sum())
        self.same += float((top_p_NK[:, 0] == top_q_NK[:, 0]).sum())
        both_NKK = top_p_NK[:, :, None] == top_q_NK[:, None, :]
        self.overlap += float(both_NKK.sum()) / top_p_NK.shape[1]
        self.tokens += len(p_NC)

    def agreement(self) -> Agreement:
        """Return the means."""
        return Agreement(
            top1_agreement=round(self.same / self.tokens, 6),
            top_k_overlap=round(self.overlap / self.tokens, 6),
            kl=round(self.kl / self.tokens, 6),
            reverse_kl=round(self.reverse / self.tokens, 6),
            tokens=self.tokens,
        )


def _outcomes(q_NV: "Tensor", ids_NK: "Tensor") -> "Tensor":
    """Return the student's log q of the K ids and of all others together, (N, C)."""
    import torch

    q_NK = q_NV.gather(1, ids_NK)
    rest_N1 = (1 - q_NK.double().exp().sum(-1, keepdim=True)).clamp_min(1e-30).log()
    return torch.cat([q_NK, rest_N1.float()], -1)


FidelityOn = Annotated[Live | Stored, Field(discriminator="type")]
