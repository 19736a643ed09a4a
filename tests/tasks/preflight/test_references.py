"""A phase or a teacher that is named in params.yaml and not there is refused, wherever it is."""

import pytest

from cohobate import params
from cohobate.errors import UserError
from flows import params_schema
from tests.tiny_project import ROOT, put


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluate.student", "kd-", "phase 'kd-'.*did you mean 'kd'"),
        ("evaluate.baseline", "base-line", "did you mean 'baseline'"),
        ("evaluate.teacher", "mian", "teacher 'mian'.*did you mean 'main'"),
        ("init_student.teacher", "mian", "did you mean 'main'"),
        ("preferences.student", "models/train/kdd/seed-1", "phase 'kdd'.*did you mean 'kd'"),
        ("curriculum.scorer", "models/train/sft/seed-1", "phase 'sft'"),
        ("filter.scorer", "models/adapt/mian", "teacher 'mian'"),
        ("train.kd.targets", "data/capture/mian", "teacher 'mian'"),
        ("train.kd.targets", "models/train/kdd", "phase 'kdd'"),
        ("challenge.champion", "models/train/old/seed-1", "phase 'old'"),
        ("generate.backends", {"mian": {"type": "transformers"}}, "teacher 'mian'"),
        ("resources", {"train@kdd": {"cpus": 2}}, "'train@kdd'.*did you mean 'train@kd'"),
        ("resources", {"generate@mian": {}}, "did you mean 'generate@main'"),
        ("resources", {"fliter": {"cpus": 2}}, "did you mean 'filter'"),
        ("resources", {"filter@main": {}}, "which does not exist"),
    ],
)
def test_what_is_named_must_exist(key: str, value: str, message: str) -> None:
    document = params.load(ROOT / "params.yaml")
    put(document, key, value)
    with pytest.raises(UserError, match=message) as caught:
        params_schema.check(document)
    assert key in str(caught.value)


def test_what_exists_may_be_named() -> None:
    document = params.load(ROOT / "params.yaml")
    put(document, "preferences.student", "models/train/kd/seed-1")
    put(document, "curriculum.scorer", "models/adapt/main")
    put(document, "resources", {"train": {}, "train@kd": {}, "capture@main": {}, "export": {}})
    put(document, "challenge.champion", "models/champion/round-0001")
    params_schema.check(document)
