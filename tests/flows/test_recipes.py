"""Every recipe is params that the schema takes and a graph that DVC can walk."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.params import ParamsError
from flows import next_round, overrides, recipes
from flows.recipe_heads import FAMILIES, read_head
from tests.tiny_project import ROOT

RECIPES = list(recipes.listed(ROOT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is_and_can_be_laid_twice(root: Path, recipe: str) -> None:
    head = (root / recipe).read_text().splitlines()
    assert all(line.startswith("# ") for line in head[:3]) and head[0].endswith(".")
    described = read_head(root / recipe)
    assert described.family in FAMILIES and described.claim.endswith(".")
    assert described.text and described.cost.startswith("Cost on the default task")
    assert overrides.apply(root, [], recipe)
    assert overrides.apply(root, [], recipe) == []


def test_every_recipe_makes_a_graph_whose_student_exists(repository: Path) -> None:
    from cohobate.dvc_bridge import versioning

    before = (repository / "params.yaml").read_bytes()
    for recipe in RECIPES:
        overrides.apply(repository, [], recipe)
        document = params.load(repository / "params.yaml")
        nodes = {node.address: node for node in versioning.stages(repository)}
        for name, phase in document["train"].items():
            upstream = nodes[f"train@{name}"].upstream
            for path in (f"models/{phase['from']}", phase["rows"], phase["targets"]):
                maker, item, *_ = [*path.split("/")[1:], ""]
                expected = f"{maker}@{item}" if f"{maker}@{item}" in nodes else maker
                # `models/assist` is of all its phases, `data/capture` of all teachers
                made = [one for one in upstream if f"{one}@".startswith(f"{expected}@")]
                assert made, f"{recipe}: {name} waits for nobody who makes {path}"
        for role in ("baseline", "student"):
            assert document["evaluate"][role] in document["train"], recipe
        for stage in ("challenge", "hard_examples"):
            assert f"train@{document['evaluate']['student']}" in nodes[stage].upstream, recipe
        phases, student = document["train"], document["evaluate"]["student"]
        behind = next_round.updates_of(phases, next_round.chain_of(phases, student))
        of_baseline = next_round.chain_of(phases, document["evaluate"]["baseline"])
        assert behind == next_round.updates_of(phases, of_baseline), recipe
        (repository / "params.yaml").write_bytes(before)


@pytest.mark.parametrize("recipe", RECIPES)
def test_preflight_lets_the_phases_of_every_recipe_through(root: Path, recipe: str) -> None:
    from cohobate.methods.train import Method
    from cohobate.teachers.signal_store.settings import CaptureParams
    from cohobate.teachers.teacher import Teacher
    from tasks.preflight.phases import check_phases

    overrides.apply(root, [], recipe)
    document = params.load(root / "params.yaml")
    phases = {
        f"{section}.{key}": params.validated(Method, phase, f"{section}.{key}")
        for section in ("assist", "train")
        for key, phase in document[section].items()
    }
    teachers = {key: Teacher.model_validate(of) for key, of in document["teachers"].items()}
    check_phases(phases, teachers, CaptureParams.model_validate(document["capture"]).signals)


@pytest.mark.parametrize(
    ("setting", "written"),
    [
        ("init_student={type: random, layers: 2}", {"init_student.of": "data/preflight"}),
        (
            "preferences={type: best_vs_worst, by: {type: votes}}",
            {"preferences.judge": "cohobate/packaged/smollm2-135m-instruct.yaml"},
        ),
        (
            "curriculum={difficulty: {type: length}, schedule: {type: shuffled}}",
            {"curriculum.scorer": None},
        ),
        ("challenge={}", {"challenge.champion": "models/init_student"}),
    ],
)
def test_what_dvc_yaml_reads_of_a_section_is_written_out(
    repository: Path, setting: str, written: dict[str, str | None]
) -> None:
    from cohobate.dvc_bridge import versioning

    overrides.apply(repository, [setting])
    document = params.load(repository / "params.yaml")
    for key, value in written.items():
        section, _, name = key.partition(".")
        assert name in document[section] and value in (None, document[section][name])
    assert versioning.stages(repository)


def test_dvc_reads_an_address_that_was_set(repository: Path) -> None:
    from cohobate.dvc_bridge import versioning

    teacher = "{model: large-1, endpoint: http://127.0.0.1:1/v1, licence: x}"
    overrides.apply(repository, [f"teachers.main={teacher}"])
    assert versioning.stages(repository)


def write(root: Path, text: str) -> str:
    (root / "recipes/mine.yaml").write_text(text)
    return "recipes/mine.yaml"


JUDGED = "evaluate: {student: baseline}\n"


def test_a_mapping_is_merged_and_null_deletes(root: Path) -> None:
    mine = write(root, "# mine\ntrain: {kd: null, baseline: {updates: 7}}\nseeds: [3]\n" + JUDGED)
    before = params.load(root / "params.yaml")["train"]["baseline"]
    changes = overrides.apply(root, ["seeds=[4]"], mine)
    assert "train.kd: removed" in changes
    assert f"train.baseline.updates: {before['updates']} -> 7" in changes
    document = params.load(root / "params.yaml")
    assert set(document["train"]) == {"baseline"} and document["seeds"] == [4]
    assert document["train"]["baseline"] == {**before, "updates": 7}
    assert "# one student per seed" in (root / "params.yaml").read_text()  # comments stay


def test_another_type_takes_the_place_of_the_whole(root: Path) -> None:
    overrides.apply(root, [], write(root, "# mine\ninit_student: {type: random, layers: 2}\n"))
    assert params.load(root / "params.yaml")["init_student"] == {
        "type": "random",
        "layers": 2,
        "of": "data/preflight",
        "rows": "data/preflight",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# mine\ntrian: {}\n", "did you mean 'train'"),
        ("# mine\ntrain: {kd: {updatse: 3}}\n", "did you mean 'updates'"),
        ("- 1\n", "a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_and_the_file_untouched(root: Path, text: str, says: str) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=says):
        overrides.apply(root, [], write(root, text))
    assert (root / "params.yaml").read_bytes() == before


def test_a_recipe_that_is_not_there_is_told_the_nearest(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"did you mean 'recipes/hinton-kd\.yaml'"):
        overrides.apply(root, [], "recipes/hinton.yaml")


def values(root: Path) -> dict[str, Any]:
    """Return params.yaml but for what it says of recipes."""
    return {name: v for name, v in params.load(root / "params.yaml").items() if name != "recipe"}


@pytest.mark.parametrize("first", RECIPES)
def test_a_recipe_after_another_is_as_if_it_were_the_first(root: Path, first: str) -> None:
    second = RECIPES[RECIPES.index(first) - 1]
    untouched = values(root)
    overrides.apply(root, ["seeds=[4]", "evaluate.bootstrap=199"])  # a user's own edits
    overrides.apply(root, [], second)
    expected = values(root)
    overrides.apply(root, [], "none")
    evaluate = untouched["evaluate"] | {"bootstrap": 199}
    assert values(root) == untouched | {"seeds": [4], "evaluate": evaluate}
    overrides.apply(root, [], first)
    changes = overrides.apply(root, [], second)
    assert values(root) == expected
    assert [*values(root)["train"]] == [*expected["train"]]  # in the same order too
    assert f"recipe.files: {[first]} -> {[second]}" in changes


def test_an_edit_within_what_a_recipe_added_goes_with_it(root: Path) -> None:
    untouched = values(root)
    overrides.apply(root, ["train.gkd.updates=7"], "recipes/gkd.yaml")
    changes = overrides.apply(root, [], "recipes/hinton-kd.yaml")
    assert "train.gkd: removed" in changes and "train.sft: removed" in changes
    assert [*values(root)["train"]] == [*untouched["train"]]
    overrides.apply(root, [], "none")
    assert values(root) == untouched
    assert "recipe: {}" in (root / "params.yaml").read_text()


def test_comments_of_what_a_recipe_replaced_come_back(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    overrides.apply(root, [], "recipes/sft-kd-dpo.yaml")
    overrides.apply(root, [], "none")
    assert (root / "params.yaml").read_text().split() == before.split()


def test_recipes_that_set_different_keys_are_written_together(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    both = ["recipes/code.yaml", "recipes/sequence-kd.yaml"]
    overrides.apply(root, [], both)
    document = params.load(root / "params.yaml")
    assert document["recipe"]["files"] == both
    assert document["task"]["verifier"] == {"type": "code"}
    assert document["evaluate"]["student"] == "sequence-kd" and "kd" not in document["train"]
    assert overrides.apply(root, [], both) == []
    overrides.apply(root, [], "none")
    assert (root / "params.yaml").read_text().split() == before.split()


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        (("seeds: [1]\n", "seeds: [2]\n"), "seeds"),
        (("train: {kd: null}\n", "train: {kd: {updates: 7}}\n"), "train.kd"),
        (("train: {kd: {updates: 3}}\n", "train: {kd: {updates: 7}}\n"), "train.kd.updates"),
        # one replaces the section, the other edits what is replaced
        (("adapt: {type: none}\n", "adapt: {epochs: 7}\n"), "adapt"),
    ],
)
def test_two_values_of_a_key_are_refused_with_the_files(
    root: Path, texts: tuple[str, str], keys: str
) -> None:
    before = (root / "params.yaml").read_bytes()
    for name, text in zip(("one", "other"), texts, strict=True):
        (root / f"recipes/{name}.yaml").write_text(text)
    both = ["recipes/one.yaml", "recipes/other.yaml"]
    with pytest.raises(ParamsError, match=f"one.yaml and recipes/other.yaml set {keys} to"):
        overrides.apply(root, [], both)
    with pytest.raises(ParamsError, match="goes with no other"):
        overrides.apply(root, [], ["none", both[0]])
    assert (root / "params.yaml").read_bytes() == before


def test_defaults_complete_the_phases_that_a_recipe_names(root: Path) -> None:
    before = params.load(root / "params.yaml")["train"]
    text = """# mine
train:
  defaults: {method: sft, updates: 7, freeze: {embeddings: false}}
  kd: null
  baseline: {}
  one: {from: init_student, rows: a, targets: a}
  other: {from: init_student, rows: a, targets: a, updates: 9}
evaluate: {student: one}
"""
    overrides.apply(root, [], write(root, text))
    assert "&" not in (root / "params.yaml").read_text().partition("train:")[2]  # no YAML anchors
    train = params.load(root / "params.yaml")["train"]
    freeze = {"embeddings": False}
    assert [*train] == ["baseline", "one", "other"]
    assert train["baseline"] == {**before["baseline"], "updates": 7, "freeze": freeze}
    assert {name: phase["updates"] for name, phase in train.items()} == {
        "baseline": 7,
        "one": 7,
        "other": 9,
    }
    assert train["other"]["method"] == "sft" and train["other"]["freeze"] == freeze


def test_defaults_belong_into_recipes(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"train\.defaults is read in recipes alone"):
        overrides.apply(root, ["train.defaults={updates: 7}"])
    with pytest.raises(ParamsError, match="a mapping"):
        overrides.apply(root, [], write(root, "# mine\ntrain: {defaults: 7}\n"))


def test_the_recipe_of_an_earlier_version_is_restored(root: Path) -> None:
    untouched = values(root)
    overrides.apply(root, [], "recipes/gkd.yaml")
    path = root / "params.yaml"
    old = re.sub(r"files:\s+- ", "file: ", path.read_text())
    path.write_text(old)
    assert "file: recipes/gkd.yaml" in old
    assert recipes.files_of(params.load(path)) == ["recipes/gkd.yaml"]
    overrides.apply(root, [], "none")
    assert values(root) == untouched
