"""Proxy variables of the environment: loopback is reached directly."""

import os
import re
from collections.abc import MutableMapping

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
_IPV6_NETWORK = re.compile(r":.*/")


def proxies(variables: MutableMapping[str, str]) -> dict[str, str]:
    """Return the proxy variables that are set, in lower or upper case."""
    names = [*_PROXIES, *map(str.upper, _PROXIES)]
    return {name: variables[name] for name in names if variables.get(name)}


def exempt_loopback(variables: MutableMapping[str, str] = os.environ) -> None:
    """Add loopback to NO_PROXY where a proxy is set: Prefect, Ray and S3 may run on this machine.

    Libraries read either spelling, so both get what either said before. IPv6 networks and brackets
    go: httpx, and so Prefect, stops at them.
    """
    lists = [variables.get(name, "") for name in _EXCEPTIONS]
    entries = [entry.strip() for entry in ",".join(lists).split(",")]
    hosts = [entry.strip("[]") for entry in entries if entry and not _IPV6_NETWORK.search(entry)]
    if "*" in hosts:
        return
    if proxies(variables):
        hosts += _LOOPBACK
    elif hosts == [*filter(None, entries)]:
        return
    variables.update(dict.fromkeys(_EXCEPTIONS, ",".join(dict.fromkeys(hosts))))
