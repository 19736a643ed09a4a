"""The teacher's distribution over the next token, at every token of the rows that were kept.

In:  models/adapt/<teacher>, data/filter/kept.jsonl
Out: data/capture/<teacher>/     a signal store (tasks/signals.py says how it lies on disk)
     data/capture/<teacher>/summary.json

What the store says of one row, at the first token of its answer (K = 3):

    ids        1673        9041        1956         " animal", " food", " plant"
    logprobs   -0.0312     -4.12       -5.03
    leftover   -4.89                                log of the mass of all other ids
"""

from typing import Annotated

from pydantic import Field

from tasks.checkpoints import Precision
from tasks.params import EachOf, Section
from tasks.teachers import Teacher


class CaptureParams(Section):
    """The section `capture` of params.yaml."""

    top_k: int = Field(32, ge=1)
    """K: ids stored for each token; the mass of all others is one number."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which the signals can be used."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens, padding included, that go through the teacher at once."""
    chunk_tokens: int = Field(512, ge=1)
    """Tokens whose logits are in memory at once."""
    precision: Precision = "bfloat16"
    """Number format in which the teacher runs."""
    threads: int = Field(2, ge=1)
    """Batches side by side on a CPU. The result does not depend on it."""


def run(item: str, teacher: Annotated[Teacher, EachOf("teachers")], capture: CaptureParams) -> None:
    """Run the teacher `item` over the kept rows and store what it says.

    A teacher with `signals: false` teaches by its text alone: nothing is stored of it.

    Raises:
        UserError: there are no rows, or the teacher's checkpoint is damaged.
    """
    from tasks.capture.teacher_pass import capture_signals
    from tasks.progress import say
    from tasks.records import ADAPT, CAPTURE, FILTER, write_json

    folder = CAPTURE / item
    if not teacher.signals:
        write_json(folder / "summary.json", {"stored": "nothing: signals is false"})
        return
    figures = capture_signals(
        ADAPT / item, FILTER / "kept.jsonl", folder, capture, what=f"capture {item}"
    )
    write_json(folder / "summary.json", figures)
    say(f"stored {figures['tokens']} tokens of {figures['rows']} rows")
