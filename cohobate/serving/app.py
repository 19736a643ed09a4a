"""The web application: /v1/models, /v1/chat/completions and /v1/completions."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.serving import openai_api
from cohobate.serving.openai_api import AnsweringModel, NoTeacherError, Query

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response


def make_app(model: AnsweringModel, name: str) -> "FastAPI":
    """Return the application that serves a model under a name.

    Requests may name any model: there is one.
    """
    from fastapi import FastAPI
    from starlette.requests import Request

    app, numbers = FastAPI(title="cohobate serve"), count(1)

    # `Request` is read from these annotations when the application starts
    async def chat(request: Request) -> Any:
        return await _answered(model, name, next(numbers), request, openai_api.chat_query)

    async def complete(request: Request) -> Any:
        return await _answered(model, name, next(numbers), request, openai_api.completion_query)

    def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "cohobate"}
        return {"object": "list", "data": [entry]}

    app.add_api_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_api_route("/v1/completions", complete, methods=["POST"])
    app.add_api_route("/v1/models", models, methods=["GET"])
    return app


async def _answered(
    model: AnsweringModel,
    name: str,
    number: int,
    request: Any,
    read: Callable[[Mapping[str, Any]], Query],
) -> "Response":
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, StreamingResponse

    try:
        body = await request.json()
        query = read(body)
        served = await run_in_threadpool(model.answers, query)
    except (UserError, ValueError) as error:
        what = error.what if isinstance(error, UserError) else f"not JSON: {error}"
        where = error.where if isinstance(error, UserError) else None
        no_teacher = isinstance(error, NoTeacherError)  # no fault of the request
        kind = "service_unavailable" if no_teacher else "invalid_request_error"
        detail = {"message": what, "type": kind, "param": where, "code": None}
        return JSONResponse({"error": detail}, status_code=503 if no_teacher else 400)
    if query.stream:
        events = openai_api.stream(query, name, number, served)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(openai_api.reply(query, name, number, served))
