"""Require authentication of servers that others can reach: whoever submits work runs code here."""

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from cohobate.errors import UserError


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raise where a Prefect server or Ray cluster beyond loopback is used without authentication.

    Raises:
        UserError: naming the server, and what to set.
    """
    api = environment.get("PREFECT_API_URL", "")
    known = environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_API_KEY")
    if api and _beyond_loopback(api) and not known:
        raise UserError(
            "this Prefect server is reachable from other machines and has no authentication",
            where=f"PREFECT_API_URL={api}",
            fix="start it with PREFECT_SERVER_API_AUTH_STRING=user:password, "
            "and export PREFECT_API_AUTH_STRING=user:password here",
        )
    ray = environment.get("RAY_ADDRESS", "")
    if ray and ray != "auto" and _beyond_loopback(ray if "://" in ray else f"//{ray}"):  # noqa: SIM102
        if environment.get("RAY_AUTH_MODE") != "token":
            raise UserError(
                "this Ray cluster is reachable from other machines and has no token",
                where=f"RAY_ADDRESS={ray}",
                fix="ray get-auth-token --generate && export RAY_AUTH_MODE=token, on every node",
            )


def _beyond_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host in ("localhost", ""):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True  # a host name: other machines may reach it
