"""Preference training: against a float64 reference, one model in memory, and at its edges."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cohobate import sealed_folder
from cohobate.data.records import INIT_STUDENT, TRAIN, Pair, row_id, write_rows
from cohobate.errors import UserError
from cohobate.methods.train import Method, rows_of
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from tasks.train.stage import run
from tests.tasks.train.test_train import SFT, digests, history, phase, round_so_far

__all__ = ["round_so_far"]
PAIRS = Path("data/preferences/pairs.jsonl")
DPO = SFT | {"method": "dpo", "rows": str(PAIRS), "targets": str(PAIRS), "learning_rate": 0.003}


def pairs() -> list[Pair]:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(10)]
    return [
        Pair(
            id=row_id(prompt),
            prompt=prompt,
            chosen=" animal",
            rejected=" plant of a long name" if n % 2 else " plant",
            chosen_origin="teacher",
            rejected_origin="student",
            margin=1.0,
        )
        for n, prompt in enumerate(prompts)
    ]


@pytest.fixture
def paired(round_so_far: None) -> None:
    write_rows(PAIRS, pairs())


def log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> torch.Tensor:
    """Sum over the answer and the end of sequence, in float64."""
    before = tokenizer(prompt)["input_ids"]
    after = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logq = model.double()(torch.tensor([before + after])).logits[0].log_softmax(-1)
    model.float()
    at = torch.arange(len(before) - 1, len(before) + len(after) - 1)
    return logq[at, torch.tensor(after)].sum()


def margin(folder: Path) -> float:
    model, tokenizer = checkpoints.load(folder)
    gaps = [
        log_probability(model, tokenizer, p.prompt, p.chosen)
        - log_probability(model, tokenizer, p.prompt, p.rejected)
        for p in pairs()
    ]
    return float(torch.stack(gaps).mean())


def test_a_task_weighs_in_the_loss_and_is_drawn_at_its_rate(round_so_far) -> None:
    tasks = ["words"] * 8 + ["sums"] * 2
    named = [one.model_copy(update={"task": t}) for one, t in zip(pairs(), tasks, strict=True)]
    write_rows(PAIRS, named)
    losses = {}
    for name, weights in {"alike": {}, "half": {"words": 0.5, "sums": 0.5}}.items():
        of = {"updates": 1, "mixing": "equal", "task_weights": weights}
        run(name, phase(**DPO | of), seeds=[1])
        losses[name] = [float(line["loss"]) for line in history(name, 1)]
    assert losses["half"][0] == pytest.approx(losses["alike"][0] / 2, rel=1e-5)
    with pytest.raises(UserError, match="'sum'; did you mean 'sums'"):
        run("odd", phase(**DPO | {"task_weights": {"sum": 2.0}}), seeds=[1])


def test_a_phase_learns_to_prefer_and_gives_the_same_bytes(paired) -> None:
    runs = []
    for _ in range(2):
        run("here", phase(**DPO | {"updates": 12, "learning_rate": 0.005}), seeds=[1])
        runs.append(digests(TRAIN / "here"))
    assert runs[0] == runs[1]
    lines = history("here", 1)
    columns = ["step", "loss", "gradient_norm", "tokens", "learning_rate", "stage"]
    assert list(lines[0]) == columns and len(lines) == 12
    assert all(float(line["gradient_norm"]) > 0 and int(line["tokens"]) > 8 for line in lines)
    assert float(lines[0]["loss"]) == pytest.approx(0.6931, abs=1e-3), "student = reference: log 2"
    assert float(lines[-1]["loss"]) < 0.3
    assert margin(TRAIN / "here/seed-1") > margin(INIT_STUDENT) + 1
    summary = json.loads((TRAIN / "here/summary.json").read_text())
    assert summary["reward accuracies, seed 1"] == 1.0 and summary["rows"] == 10


def test_the_student_is_left_as_any_phase_leaves_it(paired) -> None:
    run("sft", phase(**SFT), seeds=[1])
    run("here", phase(**DPO), seeds=[1])
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        left, usual = (TRAIN / f"{p}/seed-1/{name}" for p in ("here", "sft"))
        assert left.read_bytes() == usual.read_bytes(), name
    sealed_folder.verify(TRAIN / "here/seed-1")


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_loss_is_that_of_the_paper(paired, loss_type) -> None:
    """Against float64: the second update's loss, from the first one's weights."""
    fields = DPO | {"batch_size": 10, "schedule": "constant", "warmup": 0.0, "beta": 0.3}
    fields |= {"loss_type": {loss_type: 1.0}, "save_precision": "float32"}
    run("one", phase(**fields | {"updates": 1}), seeds=[1])
    run("two", phase(**fields | {"updates": 2}), seeds=[1])
    student, tokenizer = checkpoints.load(TRAIN / "one/seed-1")
    reference, _ = checkpoints.load(INIT_STUDENT)
    losses = []
    for pair in pairs():
        ratios, lengths = [], []
        for answer in (pair.chosen, pair.rejected):
            ours, theirs = (
                log_probability(m, tokenizer, pair.prompt, answer) for m in (student, reference)
            )
            ratios.append(ours - theirs)
            lengths.append(len(tokenizer(answer)["input_ids"]) + 1)
        if loss_type == "sigmoid":
            losses.append(-torch.nn.functional.logsigmoid(0.3 * (ratios[0] - ratios[1])))
        else:
            losses.append((ratios[0] / lengths[0] - ratios[1] / lengths[1] - 1 / 0.6) ** 2)
    expected = float(torch.stack(losses).mean())
    assert float(history("two", 1)[1]["loss"]) == pytest.approx(expected, rel=1e-4)


def test_there_is_no_second_model_in_memory(paired, monkeypatch) -> None:
    from transformers import PreTrainedModel

    from cohobate.methods.preference_loss import PreferenceLoss

    seen = []
    original = PreferenceLoss.forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        gc.collect()
        models = [m for m in gc.get_objects() if isinstance(m, PreTrainedModel)]
        seen.append(sum("CausalLM" in type(m).__name__ for m in models))
        return original(self, *args, **options)

    gc.collect()
    monkeypatch.setattr(PreferenceLoss, "forward", counting)
    run("here", phase(**DPO | {"updates": 2}), seeds=[1])
    assert set(seen) == {1}


def test_low_rank_updates_learn_to_prefer_too(paired) -> None:
    lora = {"adapter": {"type": "lora", "rank": 4}, "learning_rate": 0.01, "updates": 10}
    run("here", phase(**DPO | lora), seeds=[1])
    lines = history("here", 1)
    assert float(lines[0]["loss"]) == pytest.approx(0.6931, abs=1e-3)
    assert margin(TRAIN / "here/seed-1") > margin(INIT_STUDENT) + 0.1
    model, _ = checkpoints.load(TRAIN / "here/seed-1")
    started, _ = checkpoints.load(INIT_STUDENT)
    same = {name for name, w in started.named_parameters() if w.equal(model.get_parameter(name))}
    assert any("norm" in name for name in same) and not any("proj" in name for name in same)


def test_micro_batches_are_one_large_batch(paired) -> None:
    runs = []
    for size in (4, 2):
        run("here", phase(**DPO | {"micro_batch_size": size}), seeds=[1])
        runs.append([float(line["loss"]) for line in history("here", 1)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_a_loss_that_is_not_finite_names_the_pairs(paired) -> None:
    model, tokenizer = checkpoints.load(INIT_STUDENT)
    model.model.norm.weight.data[0] = torch.nan
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    with pytest.raises(UserError, match="loss is not finite") as caught:
        run("here", phase(**DPO), seeds=[1])
    assert "update 1, rows " in caught.value.where
    assert not (TRAIN / "here/seed-1").exists()


def test_several_pairs_of_one_prompt_each_have_their_own_reference(paired) -> None:
    prompt = pairs()[0].prompt
    answers = [" animal", " plant of a long name", " a small thing", " plant"]
    several = [
        pairs()[0].model_copy(update={"chosen": a, "rejected": b})
        for a, b in zip(answers, answers[1:] + answers[:1], strict=True)
    ]
    assert {(p.id, p.prompt) for p in several} == {(row_id(prompt), prompt)}
    write_rows(PAIRS, several)
    run("here", phase(**DPO | {"updates": 1}), seeds=[1])
    assert float(history("here", 1)[0]["loss"]) == pytest.approx(0.6931, abs=1e-3)


def test_pairs_are_read_as_pairs(paired) -> None:
    assert rows_of(PAIRS) == pairs()


def test_no_pair_that_is_short_enough_is_a_readable_error(paired) -> None:
    with pytest.raises(UserError, match="none is left"):
        run("here", phase(**DPO | {"max_tokens": 3}), seeds=[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": "data/curriculum/train.jsonl", "targets": "data/curriculum/train.jsonl"},
            "has no pairs",
        ),
        ({"targets": "data/capture/main"}, "targets must be"),
        ({"micro_batch_size": 3}, "must divide"),
        ({"loss_type": {"sigmiod": 1}}, "loss_type"),
        ({"loss_type": {"exo_pair": 1}}, "label_smoothing"),
    ],
)
def test_mistakes_in_params_are_explained(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, DPO | change, "train.here")
