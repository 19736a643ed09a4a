"""`--set` edits params.yaml: comments stay, wrong keys are refused, nothing is half written."""

import shutil
from pathlib import Path

import pytest

from cohobate.params import ParamsError
from flows import overrides

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


def test_a_setting_is_written_and_comments_stay(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    assert overrides.apply(root, ["seeds=[1, 2, 3]"]) == ["seeds: [1] -> [1, 2, 3]"]
    after = (root / "params.yaml").read_text()
    assert comments(after) == comments(before)
    changed = [
        pair
        for pair in zip(before.splitlines(), after.splitlines(), strict=True)
        if pair[0] != pair[1]
    ]
    assert [new.split("#")[0].strip() for _, new in changed] == ["seeds: [1, 2, 3]"]
    assert overrides.apply(root, ["seeds=[1, 2, 3]"]) == []
    assert overrides.apply(root, ["seeds=[1]"]) == ["seeds: [1, 2, 3] -> [1]"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.kd.updatse=3", "did you mean 'updates'"),
        ("trian.kd.updates=3", "did you mean 'train'"),
        ("train.kd.updates=many", "train.kd.updates"),
        ("seeds", "expected key=value"),
        ("seeds.first.x=1", "seeds"),
    ],
)
def test_a_wrong_setting_is_refused_and_the_file_untouched(
    root: Path, setting: str, says: str
) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ParamsError) as caught:
        overrides.apply(root, [setting])
    assert says in str(caught.value)
    assert (root / "params.yaml").read_bytes() == before


def test_settings_for_now_are_taken_back(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with overrides.temporarily(root, ["seeds=[7]"]) as changes:
        assert changes == ["seeds: [1] -> [7]"]
        assert b"[7]" in (root / "params.yaml").read_bytes()
    assert (root / "params.yaml").read_bytes() == before


def test_a_document_whose_comments_would_break_it_is_written_without_them() -> None:
    yaml = overrides._round_trip_yaml()
    document = yaml.load("a: 1   # kept\nb: 2\n")
    plain = {"a": 1, "b": 2}
    assert overrides._written(yaml, document, plain) == "a: 1   # kept\nb: 2\n"
    # what ruamel does where a comment that ended a line has moved
    document.ca.items["a"][2].value = "b: 3"
    assert overrides._written(yaml, document, plain) == "a: 1\nb: 2\n"


def test_comments_that_are_lost_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "_written", lambda *_: "seeds: [1]\n")
    *_, last = overrides.apply(root, ["seeds=[1, 2]"])
    assert last.startswith("comments: removed")
