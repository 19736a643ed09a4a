"""The stage `export`: which checkpoint leaves, in which forms, and what its cards say."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate import params, sealed_folder
from cohobate.data.records import (
    ADAPT,
    DEV,
    EXPORT,
    FILTER,
    Response,
    Row,
    read_rows,
    row_id,
    write_json,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.params import ParamsError
from cohobate.scoring.metrics import TokenF1, VerifierAccuracy
from cohobate.scoring.verifiers import Label, Task
from cohobate.students.initialization import StudentInit
from tasks.export.rescoring import Rescored
from tasks.export.stage import AnyForm, ExportParams, run

TASK = Task(verifier=Label(type="label"))
INIT_STUDENT = params.validated(
    StudentInit, {"type": "teacher_layers", "layers": [0, 1]}, "init_student"
)
TEACHER = {
    "model": "someone/teacher",
    "revision": "9f8a",
    "fingerprint": "4eb3fa6cb12e5a59152ce4f034889c0e",
    "licence": "Apache-2.0",
    "outputs_may_train": True,
    "acknowledge": "",
}


def arm(role: str, name: str, by_seed: dict[int, str], score: float) -> dict[str, Any]:
    return {
        "arm": name,
        "role": role,
        "checkpoints": [*by_seed.values()],
        "by_seed": {str(seed): score for seed in by_seed},
        "score": {"mean": score, "low": score - 0.02, "high": score + 0.02},
        "retention": {"mean": score / 0.8, "low": 0.7, "high": 0.9},
        "agreement": 0.81,
        "calibration_error": 0.05,
        "footprint": {"parameters": 46_000_000, "flops_per_token": 92_000_000},
    }


@pytest.fixture
def evaluated(project: Path, make_model: Callable[..., Any], tokenizer: Any) -> Path:
    """What the stages before `export` leave: two seeds, the second right about every dev row."""
    for seed in (1, 2):
        model = make_model(tokenizer, seed=seed, layers=2)
        provenance = {
            "phase": "kd",
            "seed": seed,
            "params": {
                "method": "kd", "updates": 4, "epochs": None, "batch_size": 8,
                "learning_rate": 0.002,
            },
        }  # fmt: skip
        folder = Path(f"models/train/kd/seed-{seed}")
        checkpoints.save(model, tokenizer, folder, provenance, precision="bfloat16")
    prompts = [f"Definition: a small {word}\nCategory:" for word in "abcdefgh"]
    rows = [Row(id=row_id(p), prompt=p) for p in prompts]
    answers = greedy(Path("models/train/kd/seed-2"), prompts)
    answered = [r.model_copy(update={"answer": a}) for r, a in zip(rows, answers, strict=True)]
    write_rows(DEV, answered)
    kept = [Response(**row.model_dump(), teacher="main", finish="stop") for row in answered]
    write_rows(FILTER / "kept.jsonl", kept)
    write_json(FILTER / "summary.json", {"seen": 9, "kept": 8})
    steps = [{"filter": "length", "seen": 9, "dropped": 1, "reasons": {"too | long": 1}}]
    write_json(FILTER / "funnel.json", steps)
    write_json(Path("data/preflight/models.json"), {
        "teachers": {"main": TEACHER},
        "student": {"type": "teacher_layers", "layers": 2},
    })  # fmt: skip
    sizes = dict.fromkeys(("read", "set_aside", "labelled", "unlabelled", "dev", "test"), 20)
    write_json(
        Path("data/collect/summary.json"), {"source": "rows.jsonl", "licence": "CC-BY-4.0"} | sizes
    )
    Path("data/collect/NOTICE.txt").write_text("keep this notice\n")
    write_json(Path("data/generate/main/summary.json"), {"responses": 9, "cost_usd": 0.25})
    write_json(
        Path("data/evaluate/arms.json"),
        [
            arm("teacher", "teacher", {0: "models/adapt/main"}, 0.8),
            arm("initial", "initial", {0: "models/init_student"}, 0.0),
            arm("baseline", "baseline", {1: "b", 2: "b"}, 0.7),
            arm("student", "kd", {s: f"models/train/kd/seed-{s}" for s in (1, 2)}, 0.75),
        ],
    )
    write_json(Path("data/evaluate/summary.json"), {
        "gain": 0.05, "gain_low": 0.02, "gain_high": 0.08, "gate_passed": True, "seeds": 2,
        "test_rows": 2500,
    })  # fmt: skip
    return project


def greedy(folder: Path, prompts: list[str]) -> list[str]:
    from tasks.export.form import Questions
    from tasks.export.safetensors import greedy_answers

    return greedy_answers(folder, "auto", Questions(prompts, 4, 1))


def chosen(**fields: Any) -> ExportParams:
    return params.validated(ExportParams, {"threads": 1} | fields, "export")


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def hashed(*folders: str) -> dict[str, str]:
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_seed_that_is_best_on_dev_is_exported(evaluated: Path) -> None:
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    source = Path("models/train/kd/seed-2")
    exported = Path("models/export/safetensors")
    sealed_folder.verify(exported)
    assert [*checkpoints.parts(exported)] and all(
        (source / path.name).read_bytes() == path.read_bytes()
        for path in checkpoints.parts(exported)
    )
    summary = read("models/export/summary.json")
    assert (summary["seed"], summary["original score"]) == (2, 1.0)
    assert (summary["safetensors score"], summary["safetensors agreement"]) == (1.0, 1.0)
    assert read("models/export/safetensors/provenance.json")["source"]["fingerprint"] == (
        checkpoints.fingerprint(source)
    )


@pytest.mark.parametrize(("choice", "seed"), [("first", 1), (2, 2)])
def test_another_seed_can_be_asked_for(evaluated: Path, choice: str | int, seed: int) -> None:
    run(chosen(seed=choice), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    assert read("models/export/summary.json")["seed"] == seed


def test_the_forms_are_asked_with_the_prefix_that_the_student_learnt(evaluated: Path) -> None:
    for seed in (1, 2):
        folder = Path(f"models/train/kd/seed-{seed}")
        about = checkpoints.provenance(folder) | {"prompt_prefix": "[label] "}
        checkpoints.save(*checkpoints.load(folder), folder, about, precision="bfloat16")
    rows = list(read_rows(DEV, Row))
    answers = greedy(Path("models/train/kd/seed-1"), [f"[label] {row.prompt}" for row in rows])
    pairs = zip(rows, answers, strict=True)
    write_rows(DEV, [row.model_copy(update={"answer": answer}) for row, answer in pairs])
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    summary = read("models/export/summary.json")
    assert (summary["seed"], summary["original score"]) == (1, 1.0)
    card = Path("models/export/safetensors/README.md").read_text()
    assert f"[label] {rows[0].prompt}" in card and "`[label] ` before each prompt" in card
    assert "a `prefix`, the student read it" in Path("data/export/README.md").read_text()


def test_the_seed_is_chosen_by_the_metric_that_decides(evaluated: Path) -> None:
    first, second = (
        greedy(Path(f"models/train/kd/seed-{seed}"), [r.prompt for r in read_rows(DEV, Row)])
        for seed in (1, 2)
    )
    rows = list(read_rows(DEV, Row))
    # by the verifier the second is right once, the first never; by shared words the first is nearer
    answers = [second[0], *(f"{answer} and more" for answer in first[1:])]
    write_rows(
        DEV, [r.model_copy(update={"answer": a}) for r, a in zip(rows, answers, strict=True)]
    )
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    assert read("models/export/summary.json")["seed"] == 2
    run(chosen(), TASK, INIT_STUDENT, TokenF1(type="token_f1"), 4)
    summary = read("models/export/summary.json")
    assert summary["seed"] == 1 and 0 < summary["original score"] < 1


def test_a_seed_that_was_not_trained_is_refused(evaluated: Path) -> None:
    with pytest.raises(UserError, match="no student was trained with seed 7"):
        run(chosen(seed=7), TASK, INIT_STUDENT, VerifierAccuracy(), 4)


def test_the_same_round_is_exported_to_the_same_bytes(evaluated: Path) -> None:
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    first = hashed("models/export", "data/export")
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    assert hashed("models/export", "data/export") == first


def test_a_form_that_drifts_is_refused_and_nothing_is_published(evaluated: Path) -> None:
    """Four bits of weights that were drawn at random are another model."""
    forms = [
        {"type": "safetensors"},
        {"type": "gguf", "quantisation": "Q4_0", "tolerance": {"score": 0, "agreement": 1}},
    ]
    pytest.importorskip("xllamacpp")
    with pytest.raises(UserError, match=r"gguf-q4_0 drifts from the original.*nothing is pub") as e:
        run(chosen(forms=forms), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    assert "tolerance" in e.value.fix
    assert not [*EXPORT.glob("*")] and not [*EXPORT.glob(".*")]
    assert not Path("data/export").exists()


def test_without_dev_rows_nothing_is_exported(evaluated: Path) -> None:
    DEV.write_text("")
    with pytest.raises(UserError, match="no dev row has an answer"):
        run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)


def test_the_same_form_twice_is_refused() -> None:
    with pytest.raises(ParamsError, match="the same form twice: onnx, onnx"):
        chosen(forms=[{"type": "onnx"}, {"type": "onnx"}])


def test_the_model_card_says_what_a_stranger_must_know(evaluated: Path) -> None:
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    card = Path("models/export/safetensors/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "- someone/teacher\n" in card
    for text in (
        "| **distilled student** | 75.0 | [73.0, 77.0] | 93.8 | 46.0 M |",
        "| baseline: equal updates without a teacher | 70.0 |",
        "Over the equal-updates baseline: +5.0 points [+2.0, +8.0]. Seed 2 alone: 75.0 %.",
        "the same greedy answer on 100.0 % of them",
        "teacher `main` (someone/teacher): licence Apache-2.0; its outputs may train other models",
        "data: rows.jsonl, licence CC-BY-4.0",
        "updates 4, batch size 8, learning rate 0.002",
        "answers of main: cost usd 0.25, responses 9.",
        "Energy was not measured.",
    ):
        assert text in card, text
    assert "gate of its round was not passed" not in card
    assert str(evaluated) not in card


def test_a_failed_gate_and_forbidding_terms_are_said_aloud(evaluated: Path) -> None:
    write_json(
        Path("data/evaluate/summary.json"),
        read("data/evaluate/summary.json") | {"gate_passed": False},
    )
    terms = {"licence": "Llama-2", "outputs_may_train": False, "acknowledge": "research only"}
    models = read("data/preflight/models.json")
    models["teachers"]["main"] |= terms
    write_json(Path("data/preflight/models.json"), models)
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    for card in ("models/export/safetensors/README.md", "data/export/README.md"):
        text = Path(card).read_text()
        assert "**are not known to be allowed to** train other models" in text
        assert "acknowledged: research only" in text
    assert (
        "**The gate of its round was not passed:**"
        in Path("models/export/safetensors/README.md").read_text()
    )


def test_the_dataset_goes_with_its_card_and_notice(evaluated: Path) -> None:
    run(chosen(), TASK, INIT_STUDENT, VerifierAccuracy(), 4)
    assert Path("data/export/train.jsonl").read_bytes() == Path(FILTER / "kept.jsonl").read_bytes()
    assert Path("data/export/NOTICE.txt").read_text() == "keep this notice\n"
    card = Path("data/export/README.md").read_text()
    assert "8 answers" in card and "| length | 9 | 1 | too \\| long: 1 |" in card


class TestTrimmedVocabulary:
    """A student that kept only the tokens of its rows leaves with its teacher's tokenizer."""

    TRIMMED = params.validated(
        StudentInit,
        {"type": "teacher_layers", "layers": [0, 1], "vocabulary": "used",
         "rows": "data/filter/kept.jsonl"},
        "shape",
    )  # fmt: skip

    @pytest.fixture
    def trimmed(self, evaluated: Path, make_model: Callable[..., Any], tokenizer: Any) -> Any:
        """Two seeds of a student without most of the tokens that its teacher has."""
        from cohobate.students.vocabulary_trimming import trim

        checkpoints.save(make_model(tokenizer, layers=4), tokenizer, ADAPT / "main", {})
        rows = [Row.model_validate_json(line) for line in DEV.read_text().splitlines()]
        for seed in (1, 2):
            folder = Path(f"models/train/kd/seed-{seed}")
            provenance = read(str(folder / "provenance.json"))
            model, whole = checkpoints.load(folder)
            its = trim(model, whole, [row.model_copy(update={"answer": " a"}) for row in rows])
            assert len(its) < len(whole)
            checkpoints.save(model, its, folder, provenance, precision="bfloat16")
        prompts = [row.prompt for row in rows]
        answers = greedy(Path("models/train/kd/seed-2"), prompts)
        right = [r.model_copy(update={"answer": a}) for r, a in zip(rows, answers, strict=True)]
        write_rows(DEV, right)
        return tokenizer

    def test_it_is_restored_and_answers_as_it_did(self, trimmed: Any) -> None:
        pytest.importorskip("onnxruntime")
        loose = {"score": 0.5, "agreement": 0.5, "loss": 1}  # in float32 random weights waver
        forms = [{"type": "safetensors"}, {"type": "onnx", "tolerance": loose}]
        run(chosen(forms=forms), TASK, self.TRIMMED, VerifierAccuracy(), 4)
        for name in ("safetensors", "onnx"):
            its = checkpoints.load_tokenizer(EXPORT / name)
            assert its.get_vocab() == trimmed.get_vocab()
        rescored = read("models/export/safetensors/provenance.json")["rescored"]
        assert rescored["agreement"] == 1.0
        assert rescored["log_prob_drift"] == pytest.approx(0.0, abs=1e-4)
        model, _ = checkpoints.load(EXPORT / "safetensors")
        assert len(model.get_input_embeddings().weight) == len(trimmed)
        assert not [path for path in EXPORT.parent.iterdir() if path.name.startswith(".whole")]

    def test_right_answers_in_tokens_that_it_never_says_are_left_out(self, trimmed: Any) -> None:
        [first, *others] = [Row.model_validate_json(x) for x in DEV.read_text().splitlines()]
        write_rows(DEV, [first.model_copy(update={"answer": " animal"}), *others])
        assert " animal" not in (first.answer or "")
        run(chosen(), TASK, self.TRIMMED, VerifierAccuracy(), 4)
        rescored = read("models/export/safetensors/provenance.json")["rescored"]
        assert rescored["log_prob_drift"] == pytest.approx(0.0, abs=1e-4)
        assert rescored["perplexity"] < 1e9

    def test_it_can_leave_as_it_is(self, trimmed: Any) -> None:
        run(chosen(vocabulary="used"), TASK, self.TRIMMED, VerifierAccuracy(), 4)
        source = Path("models/train/kd/seed-2/model.safetensors")
        assert (EXPORT / "safetensors/model.safetensors").read_bytes() == source.read_bytes()

    def test_the_teacher_must_be_there(self, trimmed: Any) -> None:
        (ADAPT / "main/config.json").unlink()
        with pytest.raises(UserError, match="whose vocabulary was trimmed is not here"):
            run(chosen(), TASK, self.TRIMMED, VerifierAccuracy(), 4)


def test_a_form_that_finds_the_right_answers_less_likely_is_refused() -> None:
    form = params.validated(AnyForm, {"type": "int8"}, "export.forms")
    near = Rescored(0.8, 0.8, 1.0, 8, 10, loss=0.54, original_loss=0.5)
    near.refuse_drift(form)
    assert near.figures()["log_prob_drift"] == pytest.approx(-0.04)
    far = Rescored(0.8, 0.8, 1.0, 8, 10, loss=0.56, original_loss=0.5)
    with pytest.raises(UserError, match=r"higher by 0.0600 nats a token \(at most 0.05\)"):
        far.refuse_drift(form)
    silent = Rescored(0.8, 0.8, 1.0, 8, 10, loss=None, original_loss=0.5)
    silent.refuse_drift(form)
    assert silent.figures()["perplexity"] is None
