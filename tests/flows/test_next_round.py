"""What a round takes over from the one before."""

from pathlib import Path
from typing import Any

import pytest

from cohobate.errors import UserError
from flows import next_round
from tests.flows.test_round_history import record

TEXT, LABELS = {"method": "mlm", "updates": 500}, {"method": "classify", "updates": 375}
ENCODER: dict[str, Any] = {
    "plain": TEXT | {"from": "assist/masked"},
    "baseline": LABELS | {"from": "train/plain"},
    "general": TEXT | {"from": "assist/masked"},
    "student": LABELS | {"from": "train/general"},
}
"""As recipes/distilbert.yaml has it: raw text first, then the task."""
CAUSAL: dict[str, Any] = {
    "baseline": {"method": "sft", "updates": 40, "from": "init_student"},
    "first": {"method": "sft", "updates": 10, "from": "init_student"},
    "student": {"method": "kd", "updates": 30, "from": "train/first"},
}


@pytest.mark.parametrize(
    ("phases", "continued", "of_baseline"),
    [(ENCODER, "student", 875 + 375 - 500), (CAUSAL, "first", 40 + 40)],
    ids=["encoder", "causal"],
)
def test_the_champion_goes_on_and_the_baseline_has_as_many_updates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phases: dict[str, Any],
    continued: str,
    of_baseline: int,
) -> None:
    evaluate = {"student": "student", "baseline": "baseline"}
    document = {
        "train": phases,
        "evaluate": evaluate,
        "rounds": {"replay": 0, "champion_teaches": "itself"},
        "teachers": {"main": {}, "itself": {}},
        "init_student": {"teacher": "main"},
        "adapt": {"type": "sft"},
    }
    monkeypatch.setattr(next_round.params, "load", lambda path: document)
    monkeypatch.setattr(next_round, "continues_champion", lambda worktree, last: True)
    monkeypatch.setattr(next_round.storage, "pull_tracked", lambda worktree, paths: None)
    monkeypatch.setattr(next_round.overrides, "apply", lambda worktree, settings: settings)
    behind = next_round.updates_behind(tmp_path, None)
    settings = next_round.write_round_params(tmp_path, record(1, updates=behind))
    assert f"train.{continued}.from=champion/round-0001" in settings
    assert f"train.baseline.updates={of_baseline}" in settings
    assert "teachers.itself.model=models/champion/round-0001" in settings
    assert "teachers.itself.adapt={type: none}" in settings


@pytest.mark.parametrize(
    ("key", "why"), [("main", "would start from the champion"), ("itsel", "did you mean 'itself'")]
)
def test_a_champion_does_not_teach_where_it_cannot(key: str, why: str) -> None:
    document = {
        "rounds": {"champion_teaches": key},
        "teachers": {"main": {}, "itself": {}},
        "init_student": {"teacher": "main"},
    }
    with pytest.raises(UserError, match=why):
        next_round.check_champion_teaches(document)


def test_a_masked_model_that_is_judged_itself_goes_on() -> None:
    assert next_round.continuing_chain(ENCODER, "general") == ["general"]
