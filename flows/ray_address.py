"""Check the Ray cluster of `RAY_ADDRESS`: does anything listen there?"""

import os
import socket
from urllib.parse import urlsplit

from cohobate.errors import UserError

_TIMEOUT = 5.0
FIX = "start that cluster (ray status checks it), or use a local one: unset RAY_ADDRESS"


def check() -> None:
    """Raise where nothing listens at RAY_ADDRESS; Ray itself would wait for minutes.

    Raises:
        UserError: RAY_ADDRESS is no address, or nothing listens there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        return
    where = f"RAY_ADDRESS={address}"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        fix = "export RAY_ADDRESS=host:6379, or for Ray's client: ray://host:10001"
        raise UserError("RAY_ADDRESS is not the address of a Ray cluster", where=where, fix=fix)
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT).close()
    except OSError as error:
        raise UserError(f"Ray does not reply: {error}", where=where, fix=FIX) from None
