"""Every method trains in either number format, and its checkpoint records in which."""

import math
from typing import Any

import pytest

from cohobate.data.records import TRAIN
from cohobate.models import checkpoints, number_formats
from tasks.train.stage import run
from tests.cohobate.methods.test_dpo import DPO, paired
from tests.cohobate.methods.test_mutual import MUTUAL
from tests.cohobate.methods.test_on_policy import ON_POLICY
from tests.tasks.train.test_train import KD, SFT, history, phase, round_so_far

__all__ = ["paired", "round_so_far"]  # fixtures
METHODS: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "kd, stored": KD,
    "kd, live": KD | {"targets": "models/adapt/main"},
    "on_policy": ON_POLICY,
    "dpo": DPO,
    "mutual": MUTUAL,
}
TEACHERS = {"kd, live", "on_policy"}


@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_in_either_format(paired, monkeypatch, method, forced) -> None:
    monkeypatch.setenv(number_formats.FORCED, forced)
    run("here", phase(**METHODS[method] | {"precision": "auto", "updates": 2}), seeds=[1])
    assert all(math.isfinite(float(line["loss"])) for line in history("here", 1))
    expected = {"student": forced} | ({"teachers": forced} if method in TEACHERS else {})
    provenance = checkpoints.provenance(TRAIN / "here/seed-1")
    assert provenance["number_formats"] == expected
    assert provenance["params"]["precision"] == "auto"


def test_formats_differ_by_their_loss_and_params_force_one(paired, monkeypatch) -> None:
    losses = {}
    for forced, precision in (("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "float32")):
        monkeypatch.setenv(number_formats.FORCED, forced)
        run("here", phase(**SFT | {"precision": precision, "updates": 1}), seeds=[1])
        losses[forced, precision] = history("here", 1)[0]["loss"]
    assert losses["float32", "auto"] == losses["bfloat16", "float32"] != losses["bfloat16", "auto"]
