"""A busy machine starts Ray too slowly: it is tried again, but only where it is ours to start."""

import pytest
import ray

from cohobate.errors import UserError
from flows import placement


@pytest.mark.parametrize(
    ("address", "late", "tries"),
    [("local", 0, 1), ("local", 2, 3), ("local", 9, 3), ("10.0.0.1:6379", 9, 1)],
)
def test_a_local_ray_that_was_late_is_started_again(
    monkeypatch: pytest.MonkeyPatch, address: str, late: int, tries: int
) -> None:
    tried: list[dict] = []

    def init(**options: object) -> None:
        tried.append(options)
        if len(tried) <= late:
            raise RuntimeError("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", init)
    if late < tries:
        placement._connect({"address": address})
    else:
        with pytest.raises(UserError, match=r"Ray: The current node timed out during startup\."):
            placement._connect({"address": address})
    assert tried == [{"address": address}] * tries
