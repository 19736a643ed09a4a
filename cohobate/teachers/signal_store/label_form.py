"""Settings of stored label distributions: `capture.signals: {type: labels}`."""

from typing import Literal

from cohobate.params import Section


class StoredLabels(Section):
    """The teacher's distribution over the task's labels: one number a label and prompt.

    The labels are the distinct answers of the labelled rows, by `task.verifier`. A classifier
    learns these signals (`method: classify`), and so does a causal student (`method: kd`).
    """

    type: Literal["labels"]
    by: Literal["likelihood", "votes"] = "likelihood"
    """`likelihood`: of each label's whole text behind the prompt, its closing token included, made
    to sum to 1. It needs the teacher's weights. `votes`: the share of each label among the
    teacher's answers to the prompt; `generate.samples` says how many there are. It needs text
    alone, and so serves a teacher behind any endpoint."""
