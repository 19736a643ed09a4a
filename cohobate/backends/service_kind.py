"""Which server a service runs, by its list of models: a request that generates nothing.

    GET /v1/models      {"data": [{"id": "Qwen/Qwen3-32B", "owned_by": "vllm", ...}, ...]}

vLLM, SGLang and llama.cpp name themselves there (`vllm`, `sglang`, `llamacpp`).
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cohobate.backends.endpoint import ServiceAddress
from cohobate.errors import UserError

_SECONDS = 10.0
_SERVERS = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}


class ServiceKind(NamedTuple):
    """What a service says of itself."""

    server: str = ""
    """vLLM, SGLang or llama.cpp; empty where it is none of them, or behind another one."""
    models: tuple[str, ...] = ()
    """Names of its models."""
    problem: str = ""
    """Why it did not list them."""

    @property
    def scoring(self) -> str:
        """What `teachers.<name>.scoring` should be; empty where that is not known."""
        return {"vLLM": "vllm", "SGLang": "sglang", "llama.cpp": "none"}.get(self.server, "")


def service_kind(address: ServiceAddress) -> ServiceKind:
    """Return what the service at an address says of itself; its `problem` where it says nothing."""
    try:
        return _parsed(asyncio.run(_fetched(address, "/models")))
    except UserError as error:
        return ServiceKind(problem=error.what)
    except Exception as error:  # the client's errors, those of JSON and of the network
        message = address.service().redact(" ".join(str(error).split()))[:200]
        return ServiceKind(problem=message or type(error).__name__)


def serves_path(address: ServiceAddress, path: str) -> bool | None:
    """Return whether a service has a path, by its `/openapi.json`; None where it has no such page.

    Args:
        address: of its API; the page is beside /v1.
        path: such as `/inference/v1/generate`.
    """
    page = address.url.rstrip("/").removesuffix("/v1") + "/openapi.json"
    try:
        return path in json.loads(asyncio.run(_fetched(address, page)))["paths"]
    except Exception:  # the client's errors, those of JSON and of the network
        return None


async def _fetched(address: ServiceAddress, path: str) -> bytes:
    import httpx2

    async with address.client() as client, asyncio.timeout(_SECONDS):
        raw = await client.get(path, cast_to=httpx2.Response)
        content: bytes = raw.content
        return content


def _parsed(content: bytes) -> ServiceKind:
    reply: Any = json.loads(content)
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list):
        return ServiceKind(problem="it lists no models")
    models = [model for model in listed if isinstance(model, Mapping)]
    owners = {str(model.get("owned_by")).lower() for model in models}
    server = next((_SERVERS[owner] for owner in _SERVERS if owner in owners), "")
    return ServiceKind(server, tuple(str(model.get("id")) for model in models))
