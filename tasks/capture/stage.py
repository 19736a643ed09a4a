"""The teacher's distribution over the next token, at every token of the rows that were kept.

In:  models/adapt/<teacher>, data/filter/kept.jsonl
Out: data/capture/<teacher>/     a signal store (cohobate/teachers/signal_store/store.py)
     data/capture/<teacher>/summary.json

What the store says of one row, at the first token of its answer (top_k, K = 3):

    ids        1673        1956        9041         " animal", " plant", " food"
    logprobs   -0.0312     -5.03       -4.12
    rest_logprob -4.89                              log of the mass of all other ids

The rows go through in shards. A capture that was killed goes on behind its last whole shard, and
what it writes is the same to the byte (cohobate/teachers/signal_store/shards.py).
"""

from typing import Annotated

from cohobate.params import EachOf
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher


def run(item: str, teacher: Annotated[Teacher, EachOf("teachers")], capture: CaptureParams) -> None:
    """Run the teacher `item` over the kept rows and store what it says.

    A teacher with `signals: false` teaches by its text alone: nothing is stored of it.

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
