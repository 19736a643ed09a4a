"""Capture the teacher's next-token distributions at every answer token of the kept rows.

In:  models/adapt/<teacher>, data/filter/kept.jsonl
Out: data/capture/<teacher>/     a signal store (cohobate/teachers/signal_store/store.py)
     data/capture/<teacher>/summary.json

The stored signals of one row, at the first token of its answer (top_k, K = 3):

    ids        1673        1956        9041         " animal", " plant", " food"
    logprobs   -0.0312     -5.03       -4.12
    rest_logprob -4.89                              log of the mass of all other ids

Rows are processed in shards. A capture that was killed resumes after its last complete shard, and
writes the same bytes (cohobate/teachers/signal_store/shards.py).
"""

from typing import Annotated

from cohobate.params import EachOf
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher


def run(item: str, teacher: Annotated[Teacher, EachOf("teachers")], capture: CaptureParams) -> None:
    """Run the teacher `item` on the kept rows and store its distributions.

    For a teacher with `signals: false`, which provides text alone, nothing is stored.

    Raises:
        UserError: there are no rows, or the teacher's checkpoint is damaged.
    """
    from cohobate.data.records import ADAPT, CAPTURE, FILTER, write_json
    from cohobate.progress import say
    from cohobate.teachers.signal_store.capture import capture_signals

    folder = CAPTURE / item
    if not teacher.signals:
        write_json(folder / "summary.json", {"stored": "nothing: signals is false"})
        return
    figures = capture_signals(
        ADAPT / item, FILTER / "kept.jsonl", folder, capture, label=f"capture {item}"
    )
    write_json(folder / "summary.json", figures)
    say(f"stored {figures['tokens']} tokens of {figures['rows']} rows")
