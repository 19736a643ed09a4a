"""Loopback behind a proxy: reached directly, whatever the environment says of it."""

import urllib.request

import httpx
import pytest

from cohobate.proxies import exempt_loopback

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.mark.parametrize(
    "exceptions",
    [{}, {"NO_PROXY": "corp.example"}, {"no_proxy": "localhost, [::1],127.0.0.0/8,::1/128"}],
)
def test_loopback_goes_past_the_proxy_and_the_rest_through_it(
    exceptions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"HTTP_PROXY": "http://10.9.9.9:9", "https_proxy": "http://10.9.9.9:9"} | exceptions
    exempt_loopback(variables)
    assert variables["NO_PROXY"] == variables["no_proxy"]
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for host in LOOPBACK:
        assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("api.example")
    with httpx.Client() as client:
        for host in ("127.0.0.1:4200", "localhost:4200", "[::1]:4200"):
            transport = client._transport_for_url(httpx.URL(f"http://{host}/api"))
            assert transport is client._transport
        behind = client._transport_for_url(httpx.URL("http://api.example/v1"))
        assert behind is not client._transport


def test_an_ipv6_network_does_not_stop_httpx_where_there_is_no_proxy() -> None:
    variables = {"no_proxy": "10.0.0.0/8,::1/128"}
    exempt_loopback(variables)
    assert variables == {"no_proxy": "10.0.0.0/8", "NO_PROXY": "10.0.0.0/8"}


def test_nothing_is_set_without_a_proxy_or_where_all_is_exempt() -> None:
    for variables in ({}, {"NO_PROXY": "corp.example"}, {"HTTP_PROXY": "x", "NO_PROXY": "*"}):
        before = dict(variables)
        exempt_loopback(variables)
        assert variables == before
