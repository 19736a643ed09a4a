"""The stage `train`: phases from params to checkpoints, from rows of each kind."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from cohobate import sealed_folder
from cohobate.data.records import (
    ADAPT,
    CURRICULUM,
    FILTER,
    INIT_STUDENT,
    LABELLED,
    TRAIN,
    Response,
    Row,
    TrainingRow,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.methods.train import Method, rows_of
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run as capture
from tasks.train.stage import run

SFT = {
    "method": "sft",
    "from": "init_student",
    "rows": "data/collect/labelled.jsonl",
    "targets": "data/collect/labelled.jsonl",
    "updates": 6,
    "batch_size": 4,
    "learning_rate": 0.01,
    "threads": 1,
    "precision": "float32",
}
KD = SFT | {
    "method": "kd",
    "rows": "data/curriculum/train.jsonl",
    "targets": "data/capture/main",
    "terms": [
        {"type": "forward_kl", "weight": 0.7},
        {"type": "hard", "weight": 0.3},
    ],
}


def phase(**fields):
    return TypeAdapter(Method).validate_python(fields)


def labelled() -> list[Row]:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(10)]
    return [
        Row(id=row_id(p), prompt=p, answer=" animal" if n % 3 else " plant", origin="ground_truth")
        for n, p in enumerate(prompts)
    ]


def kept() -> list[Response]:
    return [Response(**row.model_dump(), teacher="main", finish="stop") for row in labelled()]


@pytest.fixture
def round_so_far(project, make_model, tokenizer):
    """What the stages before `train` leave."""
    write_rows(LABELLED, labelled())
    write_rows(FILTER / "kept.jsonl", kept())
    lessons = [
        TrainingRow(**row.model_dump(), difficulty=float(n), stage=n % 2)
        for n, row in enumerate(kept())
    ]
    write_rows(CURRICULUM / "train.jsonl", lessons)
    checkpoints.save(make_model(tokenizer, seed=1), tokenizer, ADAPT / "main", {})
    checkpoints.save(make_model(tokenizer, seed=2, layers=2), tokenizer, INIT_STUDENT, {})
    signals = CaptureParams(signals={"type": "top_k", "k": 64}, precision="float32", threads=1)
    capture("main", Teacher(model="tiny"), signals)


def history(name: str, seed: int) -> list[dict[str, str]]:
    with (TRAIN / name / f"seed-{seed}" / "history.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def two_targets() -> list[Response]:
    texts = {"prefix": "[rationale] ", "target": "rationale", "answer": " It has fur."}
    targets = []
    for row in kept():
        answer = row.prefixed("[label] ")
        targets += [answer, answer.model_copy(update=texts)]
    return targets


def test_a_phase_learns_several_targets_and_says_how_to_ask_for_the_answer(round_so_far) -> None:
    write_rows(CURRICULUM / "train.jsonl", [
        TrainingRow(**row.model_dump(), difficulty=0.0, stage=0) for row in two_targets()
    ])  # fmt: skip
    rows = {"rows": "data/curriculum/train.jsonl", "targets": "data/curriculum/train.jsonl"}
    run("two", phase(**SFT | rows, target_weights={"rationale": 0.5}), seeds=[1])
    assert json.loads((TRAIN / "two/summary.json").read_text())["rows"] == 20
    assert checkpoints.prompt_prefix(TRAIN / "two/seed-1") == "[label] "
    with pytest.raises(UserError, match="no row has a target 'rationle'; did you mean 'rationale'"):
        run("typo", phase(**SFT | rows, target_weights={"rationle": 0.5}), seeds=[1])
    run("plain", phase(**SFT), seeds=[1])
    assert checkpoints.prompt_prefix(TRAIN / "plain/seed-1") is None


def test_signals_are_captured_of_each_target(round_so_far) -> None:
    write_rows(FILTER / "kept.jsonl", two_targets())
    write_rows(CURRICULUM / "train.jsonl", [
        TrainingRow(**row.model_dump(), difficulty=0.0, stage=0) for row in two_targets()
    ])  # fmt: skip
    signals = CaptureParams(signals={"type": "top_k", "k": 64}, precision="float32", threads=1)
    capture("main", Teacher(model="tiny"), signals)
    run("two", phase(**KD, target_weights={"rationale": 0.5}), seeds=[1])
    for line in history("two", 1):
        parts = sum(float(line[term]) for term in ("forward_kl", "hard"))
        assert parts == pytest.approx(float(line["loss"]), rel=1e-4)


@pytest.mark.parametrize("fields", [SFT, KD], ids=lambda f: f["method"])
def test_a_limited_phase_learns_the_first_rows_alone(round_so_far, fields) -> None:
    assert "limit" not in phase(**fields).params()
    run("few", phase(**fields, limit=3), seeds=[1])
    assert json.loads((TRAIN / "few/summary.json").read_text())["rows"] == 3
    first = digests(TRAIN / "few/seed-1")["model.safetensors"]
    kind = TrainingRow if fields is KD else Row
    write_rows(Path(fields["rows"]), list(read_rows(Path(fields["rows"]), kind))[:3])
    run("whole", phase(**fields), seeds=[1])
    assert digests(TRAIN / "whole/seed-1")["model.safetensors"] == first


@pytest.mark.parametrize("fields", [SFT, KD], ids=lambda f: f["method"])
def test_a_phase_trains_a_student_for_each_seed(round_so_far, fields) -> None:
    run("here", phase(**fields), seeds=[1, 2])
    for seed in (1, 2):
        folder = TRAIN / "here" / f"seed-{seed}"
        sealed_folder.verify(folder)
        lines = history("here", seed)
        terms = [term["type"] for term in fields.get("terms", [{"type": "hard"}])]
        last = ["gradient_norm", "tokens", "learning_rate", "stage"]
        assert list(lines[0]) == ["step", "loss", *terms, *last]
        for line in lines:
            parts = sum(float(line[term]) for term in terms)
            assert parts == pytest.approx(float(line["loss"]), rel=1e-4)
            assert float(line["gradient_norm"]) > 0 and int(line["tokens"]) > 0
        assert len(lines) == 6 and float(lines[-1]["loss"]) < float(lines[0]["loss"])
    assert digests(TRAIN / "here/seed-1") != digests(TRAIN / "here/seed-2")
    summary = json.loads((TRAIN / "here" / "summary.json").read_text())
    assert (summary["rows"], summary["updates"]) == (10, 6)
    assert summary["final_loss"] > 0
    provenance = json.loads((TRAIN / "here/seed-2/provenance.json").read_text())
    assert provenance["seed"] == 2 and provenance["params"]["from"] == "init_student"
    assert provenance["updates"] == 6


def test_lessons_are_met_stage_after_stage(round_so_far) -> None:
    run("kd", phase(**KD), seeds=[1])
    assert [line["stage"] for line in history("kd", 1)] == ["0"] * 3 + ["1"] * 3


def test_the_same_params_give_the_same_bytes(round_so_far) -> None:
    runs = []
    for _ in range(2):
        run("kd", phase(**KD), seeds=[1])
        runs.append(digests(TRAIN / "kd"))
    assert runs[0] == runs[1]


def test_a_phase_goes_on_from_another_seed_by_seed(round_so_far) -> None:
    run("sft", phase(**SFT), seeds=[1, 2])
    run("kd", phase(**KD | {"from": "train/sft"}), seeds=[1, 2])
    for seed in (1, 2):
        provenance = json.loads((TRAIN / f"kd/seed-{seed}/provenance.json").read_text())
        assert provenance["from"] == checkpoints.fingerprint(TRAIN / f"sft/seed-{seed}")
        assert provenance["updates"] == 6 + checkpoints.updates(TRAIN / f"sft/seed-{seed}") == 12


def test_distillation_moves_the_student_towards_the_teacher(round_so_far) -> None:
    import torch

    @torch.no_grad()
    def distance(folder: Path) -> float:
        teacher, tokenizer = checkpoints.load(ADAPT / "main")
        student, _ = checkpoints.load(folder)
        losses = []
        for row in labelled():
            ids = torch.tensor([tokenizer(row.prompt)["input_ids"]])
            p, q = (m(ids).logits[0, -1].log_softmax(-1) for m in (teacher, student))
            losses.append(float((p.exp() * (p - q)).sum()))
        return sum(losses) / len(losses)

    run("kd", phase(**KD | {"updates": 80, "terms": [{"type": "forward_kl"}]}), seeds=[1])
    assert distance(TRAIN / "kd/seed-1") < distance(INIT_STUDENT) / 2


def test_signals_of_other_rows_are_refused_by_name(round_so_far) -> None:
    with pytest.raises(UserError, match="no signals of row"):
        run("kd", phase(**KD | {"rows": "data/collect/labelled.jsonl"}), seeds=[1])
    assert not (TRAIN / "kd/seed-1").exists()


def test_weights_are_stored_in_the_chosen_precision(round_so_far) -> None:
    sizes = []
    for precision in ("float32", "bfloat16"):
        run("sft", phase(**SFT | {"save_precision": precision}), seeds=[1])
        sizes.append((TRAIN / "sft/seed-1/model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_rows_of_each_kind_are_read_as_what_they_are(round_so_far) -> None:
    assert type(rows_of(LABELLED)[0]) is Row
    assert type(rows_of(FILTER / "kept.jsonl")[0]) is Response
    assert type(rows_of(CURRICULUM / "train.jsonl")[0]) is TrainingRow


def test_no_seed_is_a_readable_error(round_so_far) -> None:
    with pytest.raises(UserError, match="no seed"):
        run("sft", phase(**SFT), seeds=[])


def test_no_rows_is_a_readable_error(project) -> None:
    with pytest.raises(UserError, match="do not exist"):
        rows_of(LABELLED)
    write_rows(LABELLED, [])
    with pytest.raises(UserError, match="no rows"):
        rows_of(LABELLED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "data/capture/main"}, "own answers"),
        ({"updates": None}, "either updates or epochs"),
        ({"epochs": 2}, "either updates or epochs"),
        ({"rows": "../secret.jsonl", "targets": "../secret.jsonl"}, "inside the project"),
        ({"method": "stf"}, "did you mean 'sft'"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
    ],
)
def test_mistakes_in_params_are_explained(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, SFT | change, "train.baseline")


LIVE = KD | {"targets": "models/adapt/main", "teacher_precision": "float32"}


def first_loss(name: str) -> float:
    return float(history(name, 1)[0]["loss"])


def test_a_checkpoint_folder_is_a_live_teacher(round_so_far) -> None:
    whole = CaptureParams(signals={"type": "top_k", "k": 304}, precision="float32", threads=1)
    capture("main", Teacher(model="tiny"), whole)
    run("stored", phase(**KD), seeds=[1])
    run("live", phase(**LIVE), seeds=[1])
    assert first_loss("live") == pytest.approx(first_loss("stored"), rel=1e-3)


def test_an_earlier_phase_teaches_seed_by_seed(round_so_far) -> None:
    run("sft", phase(**SFT), seeds=[1, 2])
    again = phase(**LIVE | {"targets": "models/train/sft"})
    assert again.teacher_folders(2) == {"sft": TRAIN / "sft/seed-2"}
    run("again", again, seeds=[1, 2])
    still = phase(**LIVE | {"targets": "models/train/sft", "from": "train/sft", "updates": 1,
                            "terms": [{"type": "forward_kl"}]})  # fmt: skip
    run("still", still, seeds=[1])  # the student is its own teacher, but for bfloat16 on disk
    assert first_loss("still") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("above", ["models/adapt", "data/capture"])
def test_several_teachers_below_one_folder(round_so_far, make_model, tokenizer, above) -> None:
    checkpoints.save(make_model(tokenizer, seed=7), tokenizer, ADAPT / "other", {})
    capture(
        "other",
        Teacher(model="tiny"),
        CaptureParams(signals={"type": "top_k", "k": 64}, precision="float32", threads=1),
    )
    both = LIVE | {"targets": above, "teachers": {"main": 0.7, "other": 0.3}}
    for how in ({"type": "mixture"}, {"type": "best"}, {"type": "route", "groups": {"*": "other"}}):
        run("kd", phase(**both | {"combine": how}), seeds=[1])
    run("other", phase(**LIVE | {"targets": f"{above}/other"}), seeds=[1])
    assert first_loss("kd") == pytest.approx(first_loss("other"), rel=1e-5)


def test_features_are_terms_beside_divergences_and_are_not_saved(round_so_far) -> None:
    terms = [{"type": "hard"}, {"type": "hidden_mse", "layers": "learned"}]
    run("inside", phase(**LIVE | {"terms": terms}), seeds=[1])
    summary = json.loads((TRAIN / "inside" / "summary.json").read_text())
    learned = summary["hidden_mse of layer 2, seed 1"]
    assert len(learned) == 4 and sum(learned) == pytest.approx(1, abs=1e-3)
    names = [path.name for path in (TRAIN / "inside/seed-1").iterdir()]
    run("plain", phase(**LIVE | {"terms": [{"type": "hard"}]}), seeds=[1])
    assert sorted(names) == sorted(p.name for p in (TRAIN / "plain/seed-1").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": [{"type": "hidden_mse"}]}, "hidden_mse needs a live teacher"),
        ({"terms": [{"type": "logit_mse"}]}, "logit_mse needs a live teacher"),
        (
            {"targets": "data/capture", "teachers": {"main": 1}, "terms": [{"type": "reverse_kl"}]},
            "mixture with reverse_kl needs a live teacher",
        ),
        (
            {
                "targets": "data/capture",
                "teachers": {"main": 1},
                "combine": {"type": "mean_logits"},
            },
            "mean_logits with this needs a live teacher",
        ),
        ({"targets": "data/collect"}, "neither teachers' checkpoints nor signal stores"),
    ],
)
def test_targets_that_cannot_serve_the_terms_are_refused(round_so_far, change, message) -> None:
    with pytest.raises(UserError, match=message):
        run("kd", phase(**KD | change), seeds=[1])


def test_attention_maps_need_eager_attention() -> None:
    with pytest.raises(ParamsError, match="attention: eager"):
        validated(Method, LIVE | {"terms": [{"type": "attention"}]}, "train.kd")


def test_low_rank_updates_are_published_as_peft_reads_them(round_so_far) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    adapter = {"type": "lora", "rank": 2, "save_adapter": True}
    run("here", phase(**SFT | {"adapter": adapter, "save_precision": "float32"}), seeds=[1])
    folder = TRAIN / "here/adapter/seed-1"
    sealed_folder.verify(folder)
    base, _ = checkpoints.load(INIT_STUDENT)
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    published = load_file(TRAIN / "here/seed-1/model.safetensors")
    assert all(torch.allclose(weight, merged[name]) for name, weight in published.items())
    config = (folder / "adapter_config.json").read_bytes()
    run("here", phase(**SFT | {"adapter": adapter}), seeds=[1])
    assert (folder / "adapter_config.json").read_bytes() == config


def test_an_adapter_of_a_part_of_the_start_is_refused() -> None:
    adapter = {"type": "lora", "rank": 2, "save_adapter": True}
    with pytest.raises(ParamsError, match="goes with all layers"):
        validated(Method, SFT | {"adapter": adapter, "keep_layers": [0]}, "train.here")
