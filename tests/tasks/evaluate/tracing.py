"""Finds each number that a report shows in the files that its section names.

A number is traced if some figure of those files, written as the report writes figures, is that
number; or if it follows from them by one of the sums, differences and ratios listed here. Ticks of
axes, and what prompts and models say, are no figures.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from cohobate.evaluation import number_text
from tasks.evaluate.report import view
from tasks.evaluate.report.charts import thinned

NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
QUOTED = ("pre", "code", "style", "title")
AXES = ("axis", "ys", "grid")
VOID = ("meta", "br", "hr", "line", "path", "polyline", "img")
PROSE = {
    "header": {"95"}, "arms": {"95"}, "cost": {"95"}, "fidelity": {"100"}, "groups": {"30"},
    "robustness": {"95"}, "absent": {"2", "3"},
}  # fmt: skip
"""Numbers of sentences that no file decides."""


class Shown(NamedTuple):
    section: str
    number: str
    context: str


class Report(HTMLParser):
    """The numbers of a report by section, and the files that each section names."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.section = ""
        self.shown: list[Shown] = []
        self.sources: dict[str, list[str]] = {}
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("header", "section", "footer"):
            self.section = attributes.get("id") or tag
        if tag not in VOID:
            self.open.append((tag, attributes.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "code" and re.search("[/.]", data):
            self.sources.setdefault(self.section, []).append(data)
        quoted = any(tag in QUOTED or kind in AXES for tag, kind in self.open)
        answer = any({"right", "wrong", "quoted"} & {*kind.split()} for _, kind in self.open)
        if self.section and not quoted and not answer:
            texts = NUMBER.findall(data.replace("\N{MINUS SIGN}", " "))
            self.shown += [Shown(self.section, n, data.strip()[:80]) for n in texts]


def untraced(root: Path) -> list[Shown]:
    """Return the numbers of reports/report.html that nothing accounts for."""
    report = Report((root / "reports/report.html").read_text())
    known: dict[str, set[str]] = {}
    for section in {number.section for number in report.shown}:
        values = [v for name in report.sources.get(section, []) for v in _values(root, name)]
        values += derived(root, section)
        known[section] = {n for value in values for n in written(value)} | PROSE.get(section, set())
    return [number for number in report.shown if number.number not in known[number.section]]


def written(value: float) -> Iterator[str]:
    """Yield the numbers by which the report may write a value."""
    texts = [number_text.points(value), number_text.count(value), number_text.short(value)]
    texts += [number_text.size(value), number_text.figure(value), number_text.times(value)]
    texts += [
        number_text.milliseconds(value),
        number_text.joules(value),
        number_text.duration(abs(value)),
    ]
    texts += [f"{value:.{digits}f}" for digits in (1, 2, 3, 4)] + [f"{value:g}"]
    for text in texts:
        yield from NUMBER.findall(text.replace("\N{MINUS SIGN}", "").lstrip("+-"))


def derived(root: Path, section: str) -> list[float]:
    """Return what a section works out from the files that it names."""
    evaluate = root / "data/evaluate"
    arms = {a["role"]: a for a in json.loads((evaluate / "arms.json").read_text())}
    teacher, student = arms["teacher"], arms["student"]
    if section == "arms":
        work = [a["footprint"]["flops_per_token"] for a in arms.values() if a["footprint"]]
        stages = json.loads((root / "reports/stages.json").read_text())
        phases = YAML(typ="safe", pure=True).load(root / "params.yaml").get("train", {})
        trained = [view.training_seconds(phase, phases, stages) for phase in phases]
        return [work[0] / each for each in work] + [each for each in trained if each is not None]
    if section == "cost":
        pairs = [(teacher["footprint"], student["footprint"])]
        if (root / "reports/timings.json").exists():
            timed = json.loads((root / "reports/timings.json").read_text())["models"]
            pairs.append((timed["teacher"], timed["student"]))
        ratios = [large[k] / small[k] for large, small in pairs for k in small]
        return ratios + [1 / ratio for ratio in ratios if ratio]
    if section == "groups":
        lines = [*csv.DictReader((evaluate / "groups.csv").open())]
        return [float(x["student"]) - float(x["teacher"]) for x in lines] + [len(lines) - 10]
    return _derived_of_behaviour(root, section, teacher["score"]["mean"])


def _derived_of_behaviour(root: Path, section: str, score: float) -> list[float]:
    evaluate = root / "data/evaluate"
    if section == "money":
        floor = json.loads((evaluate / "router.json").read_text())["floor"]
        return [floor * score]
    if section == "errors":
        rows = [c["rows"] for c in json.loads((evaluate / "clusters.json").read_text())]
        return [sum(rows), *(n / sum(rows) for n in rows)]
    if section == "robustness":
        losses = json.loads((evaluate / "forgetting.json").read_text())
        by_arm = {
            x["arm"]: [y["bits_per_byte"] for y in losses if y["arm"] == x["arm"]] for x in losses
        }
        return [sum(figures) / len(figures) for figures in by_arm.values()]
    return _derived_of_data(root, section)


def _derived_of_data(root: Path, section: str) -> list[float]:
    if section == "training":
        curves = [
            [*csv.DictReader(p.open())] for p in (root / "data/evaluate/losses").glob("*.csv")
        ]
        steps = [[{k: float(v) for k, v in step.items()} for step in curve] for curve in curves]
        seeds = {p.stem.rpartition("-")[2] for p in (root / "data/evaluate/losses").glob("*.csv")}
        return [thinned(curve)[-1][1] for curve in steps] + [len(seeds)]
    if section == "data":
        funnel = json.loads((root / "data/filter/funnel.json").read_text())
        kept = [step["seen"] - step["dropped"] for step in funnel]
        rows = [json.loads(x) for x in (root / "data/curriculum/train.jsonl").open()]
        by_stage = [
            [r["difficulty"] for r in rows if r["stage"] == n] for n in {r["stage"] for r in rows}
        ]
        means = [sum(difficulties) / len(difficulties) for difficulties in by_stage]
        sizes = [len(difficulties) for difficulties in by_stage]
        return [*kept, kept[-1] / funnel[0]["seen"], *means, *sizes, *range(1, len(sizes) + 1)]
    if section == "time":
        stages = json.loads((root / "reports/stages.json").read_text())
        return [sum(stage["seconds"] for stage in stages.values())]
    if section == "lineage":
        lock = YAML(typ="safe", pure=True).load(root / "dvc.lock")["stages"]
        outs = [out for stage in lock.values() for out in stage.get("outs", []) if "md5" in out]
        return [len(outs)]
    if section == "absent":
        return list(numbers(json.loads((root / "reports/metrics.json").read_text())["seeds"]))
    return []


def _values(root: Path, name: str) -> Iterator[float]:
    for path in root.glob(name):
        if path.suffix == ".json":
            yield from numbers(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            yield len(lines)
            for line in lines:
                row = json.loads(line)
                yield from numbers({k: v for k, v in row.items() if k not in ("prompt", "id")})
        elif path.suffix == ".csv":
            for row in csv.DictReader(path.open()):
                yield from numbers([_number(value) for value in row.values()])
        elif path.suffix in (".yaml", ".lock"):
            yield from numbers(YAML(typ="safe", pure=True).load(path))
    if name == "*/summary.json":
        for path in [*root.glob("data/**/summary.json"), *root.glob("models/**/summary.json")]:
            yield from numbers(json.loads(path.read_text()))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def numbers(document: Any) -> Iterator[float]:
    """Yield every number in a document, those inside of its texts too."""
    if isinstance(document, dict):
        yield from numbers([*document.values(), *(str(key) for key in document)])
    elif isinstance(document, list | tuple):
        for one in document:
            yield from numbers(one)
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield abs(document)
    elif isinstance(document, str):
        yield from _in_text(NUMBER.findall(document))


def _in_text(texts: Iterable[str]) -> Iterator[float]:
    for text in texts:
        yield float(text.replace(",", ""))
