"""An API key reaches the stage from the environment or a Secret block, and nothing else sees it."""

import os
import pickle
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings

from cohobate.backends.ledger_storage import LEDGER_VARIABLE
from cohobate.dvc_bridge.versioning import StageNode
from flows import api_keys, placement
from flows.placement import StageResult

KEY = "sk-only-the-service-may-know"
NAME = "COHOBATE_TEST_API_KEY"
TEACHERS = {"teachers": {"main": {"key": NAME}, "local": {}}, "evaluate": {"teacher": "main"}}


def node(address: str) -> StageNode:
    return StageNode(address, "", (), ())


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, KEY)
    keys = api_keys.keys_for(node("generate@main"), TEACHERS)
    assert keys[NAME].get_secret_value() == KEY
    assert KEY not in repr(keys) and KEY not in str(keys)
    assert pickle.loads(pickle.dumps(keys))[NAME].get_secret_value() == KEY
    assert api_keys.keys_for(node("evaluate"), TEACHERS) == keys
    assert api_keys.keys_for(node("generate@local"), TEACHERS) == {}
    assert api_keys.keys_for(node("filter"), TEACHERS) == {}


def test_a_ledger_on_s3_is_named_to_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setenv(LEDGER_VARIABLE, "s3://bucket/ledger")
    keys = api_keys.keys_for(node("generate@local"), TEACHERS)
    assert keys[LEDGER_VARIABLE].get_secret_value() == "s3://bucket/ledger"
    monkeypatch.setenv(LEDGER_VARIABLE, "a/folder/of/this/machine")
    assert api_keys.keys_for(node("generate@local"), TEACHERS) == {}


def test_a_secret_block_comes_second(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        assert api_keys.keys_for(node("generate@main"), TEACHERS) == {}
        Secret(value=KEY).save("cohobate-test-api-key")
        keys = api_keys.keys_for(node("generate@main"), TEACHERS)
    assert keys[NAME].get_secret_value() == KEY
    assert NAME not in os.environ


def test_the_stage_finds_the_key_and_the_worker_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, KEY)
    keys = api_keys.keys_for(node("generate@main"), TEACHERS)
    monkeypatch.setenv(NAME, "what was there")
    seen = []

    def stage(*_: object) -> StageResult:
        seen.append(os.environ[NAME])
        return StageResult("ran", 0.0, 0.0, 0, 0)

    monkeypatch.setattr(placement, "_bring_up_to_date", stage)
    messages = list(placement._stage_on_node(str(tmp_path), "generate@main", None, keys))
    assert seen == [KEY] and os.environ[NAME] == "what was there"
    assert KEY not in repr(messages)
    monkeypatch.delenv(NAME)
    list(placement._stage_on_node(str(tmp_path), "generate@main", None, keys))
    assert NAME not in os.environ


def test_the_key_of_a_judge_reaches_the_stages_that_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, KEY)
    monkeypatch.setenv("COHOBATE_OTHER_KEY", "sk-other")
    first = {"type": "by_task", "metrics": {"a": {"judge": {"key": NAME}}, "b": {"type": "bleu"}}}
    second = {"type": "rubric", "judge": {"key": "COHOBATE_OTHER_KEY"}}
    document = {
        "teachers": {"main": {}},
        "evaluate": {"teacher": "main", "metrics": [{"type": "verifier"}, second]},
    }
    assert set(api_keys.keys_for(node("evaluate"), document)) == {"COHOBATE_OTHER_KEY"}
    assert api_keys.keys_for(node("challenge"), document) == {}
    document["evaluate"]["metrics"] = [first, second]
    for stage in ("adapt@main", "challenge", "export"):
        assert set(api_keys.keys_for(node(stage), document)) == {NAME}
    assert set(api_keys.keys_for(node("preflight"), document)) == {NAME, "COHOBATE_OTHER_KEY"}
    assert api_keys.keys_for(node("filter"), document) == {}
