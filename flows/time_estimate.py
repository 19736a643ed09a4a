"""Estimate of time: how long a round will take on this machine, before it starts.

The GFLOP of the round's matrix products are divided by the measured speed of one. Lengths of rows
may not be known yet, so the estimate is a range of half to one and a half times the figure.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import getitem
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.data.records import LABELLED, TEST, UNLABELLED
from cohobate.dvc_bridge.versioning import StageNode
from cohobate.models import checkpoints, hub, number_formats
from cohobate.models.model_size import ModelSize
from cohobate.teachers.teacher import Teachers, tuning_settings
from flows.planned_sizes import UnknownModelError, body, config_of, depth, head, size_of
from flows.split_sizes import split_sizes

LOW, HIGH = 0.5, 1.5
LONG = 15 * 60
"""Seconds from which the estimate also names what would shorten the round."""
_OF_SPEED = 0.75  # of a bare product's speed, in products of other shapes
# What is not a product, as a speed. With the figures around it these fit rounds of the default
# task: 29 minutes in float32 on AVX2, 7 in bfloat16 with AMX, on two cores.
_BESIDE = 400.0
_EACH_STAGE = 5.0  # seconds: imports, hashes, copies
_LETTERS = 4.5  # characters a token
_PROMPT, _ANSWER = 22, 3  # tokens of a row that is not there yet
_COPIED = 0.05  # of a pass: to copy signals that came with the answers
_GENERAL = 1500  # tokens of the text on which forgetting is measured


@dataclass(frozen=True)
class Work:
    """What a stage computes, in GFLOP, and on how many threads."""

    gflop: float
    threads: int = 1


@dataclass(frozen=True)
class Machine:
    """Cores of a machine, and the speed of one in the native number format."""

    number_format: str
    gflops: float
    cores: int

    @classmethod
    def here(cls) -> "Machine":
        """Measure this one, as busy as it is."""
        name = number_formats.native("cpu").number_format
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return cls(name, number_formats.measure()[name], cores)

    def seconds(self, work: Work) -> float:
        """Return how long a stage takes that has the machine to itself."""
        # times add, so speeds combine harmonically: products, and what lies beside them
        speed = 1 / (1 / (_OF_SPEED * self.gflops) + 1 / _BESIDE)
        return work.gflop / (speed * min(work.threads, self.cores)) + _EACH_STAGE


SLOWEST = Machine("float32", 5.0, 1)
SHORT = 120.0
"""Seconds on the slowest machine below which nothing is measured."""


def estimate_time(
    nodes: Sequence[StageNode], document: Mapping[str, Any], changed: Collection[str], root: Path
) -> list[str]:
    """Return how long the stages that are not up to date will take, and what would shorten it.

    Nothing where a GPU computes, the models are not here yet, or any machine is quick.

    Args:
        nodes: the stages of the round, in order.
        document: params.yaml.
        changed: addresses of the stages that will run.
        root: the project.
    """
    try:
        known = Round(document, root)
        # measuring a machine takes time itself: not for what is short on any
        if _seconds(nodes, known, changed, SLOWEST) < SHORT or checkpoints.accelerator() != "cpu":
            return []
    except UnknownModelError:
        return []
    machine = Machine.here()
    total = _seconds(nodes, known, changed, machine)
    prefix = f"about {_span(total)} on this machine ({machine.cores} cores, "
    lines = [f"{prefix}{machine.number_format} at {machine.gflops:.0f} GFLOP/s a core)"]
    if total < LONG:
        return lines
    # both by params: a file that is there keeps its rows, whatever the params say
    whole = _seconds(nodes, Round(document, root, of_files=False), changed, machine)
    for change, fewer in _halved(document):
        less = whole - _seconds(nodes, Round(fewer, root, of_files=False), changed, machine)
        if less >= 60:
            lines.append(f"  {less / 60:.0f} minutes less with --set {change}")
    return lines


def _seconds(
    nodes: Sequence[StageNode], of: "Round", changed: Collection[str], machine: Machine
) -> float:
    """Return the longest chain of stages, or all work spread over the cores, whichever is more."""
    ends: dict[str, float] = {}
    busy = 0.0
    for node in nodes:
        work = of.work(node.address)
        seconds = machine.seconds(work) if node.address in changed else 0.0
        # core-seconds of all stages
        busy += seconds * min(work.threads, machine.cores)
        ends[node.address] = seconds + max((ends.get(up, 0.0) for up in node.upstream), default=0)
    return max(*ends.values(), busy / machine.cores)


def _span(seconds: float) -> str:
    low, high = (max(1, round(share * seconds / 60)) for share in (LOW, HIGH))
    return f"{low} to {high} minutes"


def _halved(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what would be less work, as `--set` takes it, each with the document so changed."""
    halved = []
    for key in ["collect.split.unlabelled", *(f"train.{n}.updates" for n in document["train"])]:
        *above, last = key.split(".")
        fewer = deepcopy(dict(document))
        section = reduce(getitem, above, fewer)
        if isinstance(section.get(last), int) and section[last] > 1:
            section[last] //= 2
            halved.append((f"{key}={section[last]}", fewer))
    return halved


class Round:
    """The work of a round's stages, by its params and by the rows and models that are there."""

    def __init__(self, document: Mapping[str, Any], root: Path, *, of_files: bool = True) -> None:
        self.document, self.root, self.of_files = document, root, of_files
        self.split = split_sizes(document["collect"])
        self.prompt = self._tokens(root / UNLABELLED)
        self.row = self.prompt + _ANSWER

    def work(self, address: str) -> Work:
        """Return what a stage computes; nothing where models play no part in it."""
        stage, _, key = address.partition("@")
        make = getattr(self, f"_{stage}", None)
        section = self.document.get(stage) or {}
        return make(section, key) if make else Work(0)

    def _adapt(self, section: Mapping[str, Any], key: str) -> Work:
        size = self._teacher(key)
        section = tuning_settings(section, self.document["teachers"][key].get("adapt") or {})
        if section["type"] == "none" or size is None:
            return Work(0)
        rows = section.get("rows") or self._rows("labelled", LABELLED)
        batch = section.get("batch_size", 32)
        updates = section.get("updates") or section.get("epochs", 1) * rows / batch
        trained = self._training(size, section, updates * batch)
        return Work(trained + self._answers(size, section.get("dev_rows", 500)), _threads(section))

    def _generate(self, section: Mapping[str, Any], key: str) -> Work:
        size, backend = self._teacher(key), section.get("backend") or {}
        if size is None or not self._answers_prompts(section, key):
            return Work(0)
        waves = (section.get("pool") or {}).get("waves", 1)
        rows = self._responses(kept=0) * waves
        long = (section.get("decoding") or {}).get("max_tokens", _ANSWER)
        return Work(self._answers(size, rows * section.get("samples", 1), long), _threads(backend))

    def _answers_prompts(self, generate: Mapping[str, Any], key: str) -> bool:
        """Whether any prompts go to a teacher: a client's has none, nor where others have all."""
        routes: Mapping[str, str] = generate.get("routes") or {}
        tasks = self.document["collect"].get("sources") or {}
        elsewhere = tasks and all(task in routes for task in tasks)
        client = self.document["teachers"][key].get("client")
        return not client and (not elsewhere or key in routes.values())

    def _responses(self, kept: int = 1) -> int:
        """Return the rows that `generate` writes; `kept` 0: those that the teacher answers."""
        section = self.document["generate"]
        chosen = section.get("prompts", "unlabelled")
        rows = self._rows("unlabelled", UNLABELLED) if chosen != "labelled" else 0
        if chosen != "unlabelled" and (kept or section.get("reference_answers") != "keep"):
            rows += self._rows("labelled", LABELLED)
        return min(rows, section.get("rows") or rows)

    def _capture(self, section: Mapping[str, Any], key: str) -> Work:
        size = self._teacher(key)
        if size is None or not self.document["teachers"][key].get("signals", True):
            return Work(0)
        copied = self._responses(kept=0) if self._signals_come(section) else 0
        rows = self._responses() - (1 - _COPIED) * copied
        read = rows * (self.row * 2 * body(size) + _ANSWER * 2 * head(size))
        return Work(read / 1e9, _threads(section))

    def _signals_come(self, capture: Mapping[str, Any]) -> bool:
        """Whether the signals come with the answers that `generate` computes."""
        form, kept = capture.get("signals") or {}, self.document["generate"].get("signals")
        return bool(form.get("type", "top_k") == "top_k" and kept != "off")

    def _train(self, section: Mapping[str, Any], key: str) -> Work:
        phase = section[key]
        rows = phase.get("updates", 100) * phase.get("batch_size", 32)
        if "epochs" in phase:
            rows = phase["epochs"] * self._responses()
        gflop = self._training(self._start(phase["from"]), phase, rows, self._patches())
        if phase["targets"].startswith("models/"):
            teacher = self._start(phase["targets"].removeprefix("models/"))
            gflop += rows * self.row * 2 * (body(teacher) + head(teacher)) / 1e9
        if phase["method"] == "on_policy":
            gflop += self._answers(self._start(phase["from"]), rows, 16)
        if phase["method"] == "dpo":
            gflop *= 3  # two answers, and a reference
        gflop *= len(phase.get("peers", [1])) * len(self.document["seeds"])
        return Work(gflop, _threads(phase))

    def _evaluate(self, section: Mapping[str, Any], key: str) -> Work:
        rows = self._rows("test", TEST)
        robustness = section.get("robustness") or {}
        rows += robustness.get("rows", 0) * (len(robustness.get("perturbations", ())) + 1)
        read = 2 * section.get("reading_rows", 512) * self.row + _GENERAL
        sizes = [self._start("init_student")]
        for phase in self.document["train"].values():
            sizes += [self._start(phase["from"])] * len(self.document["seeds"])
        teacher = self._teacher(section.get("teacher", "main"))
        long = (section.get("decoding") or {}).get("max_tokens", 8)
        gflop = sum(
            self._answers(size, rows, long) + read * 2 * body(size) / 1e9
            for size in [*sizes, *([teacher] if teacher else [])]
        )
        if teacher:  # it reads what each student wrote
            gflop += len(sizes) * read * 2 * body(teacher) / 1e9
        return Work(gflop, _threads(section))

    def _challenge(self, section: Mapping[str, Any], key: str) -> Work:
        models = 1 + len(self.document["seeds"])
        gflop = self._answers(self._start("init_student"), models * self.split.get("dev", 500))
        return Work(gflop, _threads(section))

    def _export(self, section: Mapping[str, Any], key: str) -> Work:
        answered = (1 + len(section.get("forms", [1]))) * section.get("dev_rows", 500)
        return Work(self._answers(self._start("init_student"), 2 * answered), _threads(section))

    def _patches(self) -> int:
        """Return the tokens of the pictures before a row of a student that sees."""
        student = self.document["init_student"]
        if student["type"] != "seeing":
            return 0
        vision = student.get("vision") or {}
        return int(vision.get("image_size", 64) // vision.get("patch_size", 16)) ** 2

    def _training(
        self, size: ModelSize, how: Mapping[str, Any], rows: float, patches: int = 0
    ) -> float:
        """Return the GFLOP of learning from rows: forward, and back through what is not frozen."""
        frozen = how.get("freeze") or {}
        active = max(0, size.layers - frozen.get("layers", 0)) / max(1, size.layers)
        # 2 FLOP a weight and token forward, and 4 back: gradients of inputs and of weights
        layers = (self.row + patches) * (2 + 4 * active) * body(size)
        # the head reads answers alone; frozen, it needs no gradient of its weight
        answers = _ANSWER * (4 if frozen.get("embeddings", True) else 6) * head(size)
        return float(rows * (layers + answers) / 1e9)

    def _answers(self, size: ModelSize, rows: float, longest: int = _ANSWER) -> float:
        """Return the GFLOP of answers: prompts are read, and tokens written one by one."""
        written = min(longest, 256)
        return rows * 2 * ((self.prompt + written) * body(size) + written * head(size)) / 1e9

    def _teacher(self, key: str) -> ModelSize | None:
        """Return a teacher's size; None of one whose weights are not here."""
        teachers = params.validated(Teachers, self.document["teachers"], "teachers")
        if key not in teachers or teachers[key].endpoint:
            return None
        return size_of(config_of(teachers[key].model, self.root))

    def _start(self, start: str) -> ModelSize:
        """Return the size of the model at a path below models/."""
        stage, _, name = start.partition("/")
        phases = (self.document.get(stage) or {}) if stage in ("train", "assist") else {}
        if phase := phases.get(name.split("/")[0]):
            whole = self._start(phase["from"])
            layers = phase.get("keep_layers")
            return whole if layers is None else whole.with_layers(depth(layers))
        student = self.document["init_student"]
        own = ("pretrained", "classifier", "embedder", "masked")
        if student["type"] in own and stage != "adapt":
            config = config_of(student.get("model", hub.PACKAGED_ENCODER), self.root)
            whole = size_of({**config, **student.get("sizes", {})})
            layers = student.get("layers")
            return whole if layers is None else whole.with_layers(depth(layers))
        key = name if stage == "adapt" else student.get("teacher", "main")
        size = self._teacher(key)
        if size is None:
            raise UnknownModelError
        # a static embedder has no layers
        return size if stage == "adapt" else size.with_layers(depth(student.get("layers", 0)))

    def _rows(self, part: str, path: Path) -> int:
        """Return how many rows a part has: of the file that is there, or by the params."""
        if self.of_files and (self.root / path).exists():
            with (self.root / path).open("rb") as lines:
                return sum(1 for _ in lines)
        return int(self.split.get(part, 1000))

    def _tokens(self, path: Path) -> float:
        """Return the tokens of a prompt, from the first rows of a file that is there."""
        if not path.exists():
            return _PROMPT
        with path.open() as lines:
            prompts = [json.loads(line)["prompt"] for line in islice(lines, 200)]
        letters = sum(len(p if isinstance(p, str) else json.dumps(p)) for p in prompts)
        return letters / _LETTERS / len(prompts) if prompts else _PROMPT


def _threads(section: Mapping[str, Any]) -> int:
    return int(section.get("threads", 2))
