"""A cluster at RAY_ADDRESS that is not there is refused at once."""

import socket

import pytest

from cohobate.errors import UserError
from flows import ray_address
from tests.prefect_server import free_port


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_a_cluster_that_is_down_is_said_with_its_fix(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", form.format(free_port()))
    with pytest.raises(UserError, match="Ray does not reply") as refused:
        ray_address.check()
    assert "unset RAY_ADDRESS" in refused.value.fix


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "host:port", "ray://host"])
def test_what_is_no_address_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="not the address of a Ray cluster"):
        ray_address.check()


def test_what_listens_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        ray_address.check()
    for address in ("", "auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray_address.check()
