"""Settings of a capture: the section `capture` of params.yaml."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from cohobate.data.row_length import TooLong
from cohobate.models.number_formats import Precision
from cohobate.params import Section
from cohobate.teachers.signal_store.forms import Form, StoredDraws, StoredHidden
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.top_k_form import StoredTopK
from cohobate.teachers.teacher_workers import TeacherWorkers

_NOT_DECISIVE = {"threads", "signals", "precision", "keep_tokenizer", "teacher_workers"}
"""Of the bytes of a shard; form and number format are in `Origin`."""


AnySignals = Annotated[
    StoredTopK | StoredDraws | StoredHidden | StoredLabels, Field(discriminator="type")
]


class CaptureParams(Section):
    """The section `capture` of params.yaml."""

    signals: AnySignals = StoredTopK(type="top_k")
    """Form in which each distribution is stored: `{type: top_k, k: 32}`, `{type: sampled, draws:
    64}` or `{type: hidden}` of each token (cohobate/teachers/signal_store/forms.py says which
    losses each allows), or `{type: labels}`: one over the task's labels for each prompt."""
    keep_tokenizer: bool = False
    """Keep the teacher's tokenizer in the store: a student of another one needs it (`uld`)."""
    max_tokens: int | None = Field(None, ge=2)
    """Longest row in tokens, prompt and answer; all are captured whole when not given. Phases that
    learn the signals of cut rows need the same `max_tokens` and `too_long`."""
    too_long: TooLong = "drop"
    """Longer rows are left out (`drop`), or cut: `truncate_left` keeps their last tokens,
    `truncate_right` their first ones. They are counted either way."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens, padding included, that go through the teacher at once."""
    chunk_tokens: int = Field(512, ge=1)
    """Tokens whose logits are in memory at once."""
    precision: Precision = "auto"
    """Number format in which the teacher runs; the store records the one that was used."""
    threads: int = Field(2, ge=1)
    """Batches that run at the same time on a CPU. The result does not depend on it."""
    teacher_workers: TeacherWorkers | None = None
    """Run the teacher in Ray actors of its own instead of here, such as `{workers: 4, gpus_each:
    1}`. The result does not depend on how many there are."""
    shard_rows: int = Field(8192, ge=1)
    """Rows of one shard: as many are in memory at once, and a killed capture loses no more."""

    @model_validator(mode="after")
    def _labels_follow_whole_prompts(self) -> "CaptureParams":
        if isinstance(self.signals, StoredLabels) and self.too_long != "drop":
            raise ValueError("labels stand behind whole prompts: too_long must be drop")
        if isinstance(self.signals, StoredLabels) and self.teacher_workers:
            raise ValueError("the likelihoods of labels are computed here: no teacher_workers")
        return self

    @property
    def token_form(self) -> Form:
        """The form of signals of tokens."""
        assert not isinstance(self.signals, StoredLabels), "signals of labels have no form"
        return self.signals

    def decided_by(self) -> dict[str, Any]:
        """Return what of this, beside form and number format, decides the bytes of a shard."""
        decided = self.model_dump(mode="json", exclude=_NOT_DECISIVE)
        if self.max_tokens is None:  # shards from before there was a limit stay in use
            del decided["max_tokens"], decided["too_long"]
        return decided
