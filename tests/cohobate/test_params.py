"""params.yaml becomes typed sections; what is wrong is named with the nearest right name."""

from pathlib import Path

import pytest

from cohobate import params
from cohobate.params import ParamsError
from flows import params_schema
from tasks import signatures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document() -> dict:
    return params.load(ROOT / "params.yaml")


def refusal(document: dict) -> str:
    with pytest.raises(ParamsError) as caught:
        params_schema.check(document)
    return str(caught.value)


def test_an_unknown_section_is_refused(document: dict) -> None:
    document["fliter"] = {}
    assert "did you mean 'filter'" in refusal(document)


def test_a_missing_section_is_refused(document: dict) -> None:
    del document["seeds"]
    assert "seeds" in refusal(document)


def test_an_unknown_key_deep_inside_is_refused_with_the_nearest(document: dict) -> None:
    document["train"]["kd"]["learning_rat"] = 1
    message = refusal(document)
    assert "train.kd" in message and "did you mean 'learning_rate'" in message


def test_an_unknown_kind_is_refused_with_the_nearest(document: dict) -> None:
    document["collect"]["source"]["type"] = "wordnot"
    assert "did you mean 'wordnet'" in refusal(document)


def test_a_wrong_type_shows_what_was_found(document: dict) -> None:
    document["seeds"] = "one"
    assert "'one'" in refusal(document)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "!!python/object/apply:os.system [ls]"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError):
        params.load(tmp_path / "params.yaml")


def test_a_stage_takes_a_part_of_a_section_by_its_path(document: dict) -> None:
    document["evaluate"]["metrics"] = [{"type": "rouge_l"}, {"type": "verifier"}]
    assert signatures.arguments("challenge", document)["metric"].type == "rouge_l"
    document["evaluate"]["metrics"] = [{"type": "perplexity"}]
    assert signatures.arguments("challenge", document)["metric"].type == "perplexity"
    document["evaluate"]["metrics"] = [{"type": "label_accuracy"}]
    with pytest.raises(ParamsError, match=r"evaluate.metrics.0: 'label_accuracy' is none of"):
        signatures.arguments("challenge", document)
    document["evaluate"]["metrics"] = []
    with pytest.raises(ParamsError, match=r"evaluate.metrics.0 is missing"):
        signatures.arguments("challenge", document)


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    with pytest.raises(Exception, match="did you mean 'filter'"):
        signatures.stage_function("fliter")
