"""dpo, on_policy and mutual killed with -9: what each keeps beside weights comes back too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import ADAPT, INIT_STUDENT, Pair, row_id, write_rows
from cohobate.methods import reference_logprobs
from cohobate.models import checkpoints
from cohobate.progress import Advance, Say
from cohobate.sealed_folder import MANIFEST, staged
from tests.cohobate.methods.test_resume import (
    EVERY,
    RUN,
    UPDATES,
    at_update,
    damage,
    every_update_tells,
    killed,
    resumed_after,
    start,
    train,
)

__all__ = ["every_update_tells", "start"]  # fixtures
PAIRS = "data/preferences/pairs.jsonl"
SAMPLED = {"max_tokens": 5, "temperature": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "rows": PAIRS, "targets": PAIRS},
    "dpo, low-rank": {
        "method": "dpo",
        "rows": PAIRS,
        "targets": PAIRS,
        "adapter": {"type": "lora", "rank": 2, "dropout": 0.2},
    },
    "on_policy, adaptive with replay": {
        "method": "on_policy",
        "targets": "models/adapt/main",
        "student_text": {
            "type": "adaptive", "start": 0.8, "step": 0.2, "tolerance": 0.0, "every": 1,
            "held_out": 2,
        },
        "sampling": {"decoding": SAMPLED, "replay": 4},
    },
    "mutual": {
        "method": "mutual",
        "peers": [{}, {"jitter": 0.1}, {"keep_layers": [0], "imitates": False}],
        "keep_peers": True,
    },
}  # fmt: skip


@pytest.fixture
def ready(start: None, make_model: Callable[..., Any], tokenizer: Any) -> None:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(10)]
    pairs = [
        Pair(
            id=row_id(p), prompt=p, chosen=f" animal {n % 3}", rejected=" plant", margin=1.0,
            chosen_origin="teacher", rejected_origin="student",
        )
        for n, p in enumerate(prompts)
    ]  # fmt: skip
    write_rows(Path(PAIRS), pairs)
    checkpoints.save(make_model(tokenizer, seed=5), tokenizer, ADAPT / "main", {})


@pytest.mark.parametrize("method", METHODS)
def test_killed_it_ends_with_the_same_bytes(
    ready: None, every_update_tells: None, method: str
) -> None:
    fields = METHODS[method]
    clean = train(checkpoint_every=0, **fields)
    events: list[Any] = []
    for point in (UPDATES - 4, UPDATES - 1):
        killed(at_update(point), **fields)
    assert train(events.append, **fields) == clean
    assert resumed_after(events) == EVERY * ((UPDATES - 2) // EVERY) and not RUN.exists()


def test_checkpoints_of_earlier_versions_are_read(ready: None, every_update_tells: None) -> None:
    fields = METHODS["on_policy, adaptive with replay"]
    clean = train(checkpoint_every=0, **fields)
    killed(at_update(UPDATES - 1), **fields)
    folders = sorted(RUN.rglob("update-*"))
    for folder in folders:
        state = json.loads((folder / "state.json").read_text())
        state["remembered"] = state.pop("extra_state")
        with staged(folder) as rewritten:
            for path in folder.iterdir():
                if path.name != MANIFEST:
                    shutil.copy(path, rewritten)
            (rewritten / "state.json").write_text(json.dumps(state))
    events: list[Any] = []
    assert train(events.append, **fields) == clean
    assert folders and resumed_after(events)


def test_a_seed_of_on_policy_that_had_ended_still_tells_its_counts(
    ready: None, every_update_tells: None
) -> None:
    fields = METHODS["on_policy, adaptive with replay"] | {"seeds": [1, 2]}
    clean = train(checkpoint_every=0, **fields)
    killed(at_update(1, seed=2), **fields)
    events: list[Any] = []
    assert train(events.append, **fields) == clean, "summary.json and all"
    moved = [e.label for e in events if isinstance(e, Advance) and e.done > e.before]
    assert moved and all(label.endswith("seed 2") for label in moved)


@pytest.fixture
def reference_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs of each batch whose reference log-probabilities are computed."""
    from cohobate.methods.preference_loss import PreferenceLoss

    times: list[int] = []
    original = PreferenceLoss.answer_logprobs

    def counting(self: Any, ids_BS: Any, *others: Any) -> Any:
        times.append(len(ids_BS) // 2)
        return original(self, ids_BS, *others)

    monkeypatch.setattr(PreferenceLoss, "answer_logprobs", counting)
    return times


def test_the_reference_is_computed_once_whatever_comes_after(
    ready: None, reference_batches: list[int], make_model: Callable[..., Any], tokenizer: Any
) -> None:
    fields = METHODS["dpo"]
    clean = train(**fields, seeds=[1, 2])
    assert sum(reference_batches) == 10
    assert train(**fields, seeds=[1, 2]) == clean
    train(**fields, beta=0.5, learning_rate=0.02)
    assert sum(reference_batches) == 10, "other hyperparameters, the same reference"
    train(**fields, keep_layers=[0])
    assert sum(reference_batches) == 20, "another reference"
    checkpoints.save(make_model(tokenizer, seed=3, layers=2), tokenizer, INIT_STUDENT, {})
    train(**fields)
    assert sum(reference_batches) == 30, "another checkpoint of the same name"


@pytest.mark.parametrize("how", ["missing", "truncated", "bit-flipped"])
def test_a_damaged_reference_is_named_and_computed_anew(
    ready: None, reference_batches: list[int], how: str
) -> None:
    clean = train(**METHODS["dpo"])
    (path,) = reference_logprobs.REFERENCES.rglob("*.safetensors")
    damage(path, how)
    events: list[Any] = []
    assert train(events.append, **METHODS["dpo"]) == clean
    assert sum(reference_batches) == 20
    (line,) = [e.text for e in events if isinstance(e, Say) and "damaged" in e.text]
    assert path.name in line and str(path.parent) in line
    shutil.rmtree(reference_logprobs.REFERENCES)
    assert train(**METHODS["dpo"]) == clean
