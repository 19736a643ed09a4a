"""The teacher's distribution over the next token, at every token of the rows that were kept.

In:  models/adapt/<teacher>, data/filter/kept.jsonl
Out: data/capture/<teacher>/     a signal store (tasks/signals/store.py says how it lies on disk)
     data/capture/<teacher>/summary.json

What the store says of one row, at the first token of its answer (top_k, K = 3):

    ids        1673        1956        9041         " animal", " plant", " food"
    logprobs   -0.0312     -5.03       -4.12
    leftover   -4.89                                log of the mass of all other ids

The rows go through in shards. A capture that was killed goes on behind its last whole shard, and
what it writes is the same to the byte (tasks/capture/shards.py).
"""

from typing import Annotated, Any

from pydantic import Field

from tasks.models.number_formats import Precision
from tasks.params import EachOf, Section
from tasks.signals.forms import Form, StoredTopK
from tasks.teachers import Teacher


class CaptureParams(Section):
    """The section `capture` of params.yaml."""

    signals: Form = StoredTopK(type="top_k")
    """What is kept of each distribution: `{type: top_k, k: 32}`, `{type: sampled, draws: 64}` or
    `{type: hidden}` (tasks/signals/forms.py says which losses each allows)."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens, padding included, that go through the teacher at once."""
    chunk_tokens: int = Field(512, ge=1)
    """Tokens whose logits are in memory at once."""
    precision: Precision = "auto"
    """Number format in which the teacher runs; what it was is recorded in the store."""
    threads: int = Field(2, ge=1)
    """Batches side by side on a CPU. The result does not depend on it."""
    shard_rows: int = Field(8192, ge=1)
    """Rows of one shard: what is in memory at once, and what a killed capture loses at most."""

    def decided_by(self) -> dict[str, Any]:
        """Return what of this, beside form and number format, decides the bytes of a shard."""
        return self.model_dump(mode="json", exclude={"threads", "signals", "precision"})


def run(item: str, teacher: Annotated[Teacher, EachOf("teachers")], capture: CaptureParams) -> None:
    """Run the teacher `item` over the kept rows and store what it says.

    A teacher with `signals: false` teaches by its text alone: nothing is stored of it.

    Raises:
        UserError: there are no rows, or the teacher's checkpoint is damaged.
    """
    from tasks.capture.teacher_pass import capture_signals
    from tasks.progress import say
    from tasks.rows.records import ADAPT, CAPTURE, FILTER, write_json

    folder = CAPTURE / item
    if not teacher.signals:
        write_json(folder / "summary.json", {"stored": "nothing: signals is false"})
        return
    figures = capture_signals(
        ADAPT / item, FILTER / "kept.jsonl", folder, capture, what=f"capture {item}"
    )
    write_json(folder / "summary.json", figures)
    say(f"stored {figures['tokens']} tokens of {figures['rows']} rows")
