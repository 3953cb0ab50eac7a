"""Errors as problem details (RFC 9457), with the sentences that the errors have in Python."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from sessionsdb import errors
from sessionsdb.engine.runner import NotOpen
from sessionsdb.printable import escape_hidden
from sessionsdb.web.api.answers import answer

log = logging.getLogger("sessionsdb.web")

MEDIA_TYPE = "application/problem+json"

_STATUS: dict[type[errors.SessionsDBError], int] = {
    errors.InvalidArgument: 400,
    errors.UnknownSession: 404,
    errors.UnknownReceipt: 404,
    errors.UnknownQuestion: 404,
    errors.VersionConflict: 412,
    errors.IdempotencyConflict: 422,
    errors.InboxFull: 429,
    errors.SpawnDenied: 403,
    errors.SearchUnavailable: 503,
    errors.SchemaOutOfDate: 503,
    errors.StorageError: 503,
    errors.DamagedValue: 500,
}
"""The status of an error and of its subclasses. All others are 409: the session is in a state that
does not allow the call."""

_SHOWN = ("session_id", "position", "expected", "actual", "limit", "pending", "key")
"""The attributes of errors that a problem has as members."""

_NAMES = {
    400: "UnreadableBody",
    404: "UnknownPath",
    405: "MethodNotAllowed",
    413: "BodyTooLarge",
}
"""The names of problems that the routing finds."""

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

RETRY_SECONDS = {429: "1", 503: "5"}


def retry_after(seconds: float) -> str:
    """Return the value of ``Retry-After``, which knows whole seconds only."""
    return str(math.ceil(seconds))


class Problem(BaseModel):
    """A problem, as RFC 9457 has it."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = Field(description="`urn:sessionsdb:` and the name of the error.")
    title: str = Field(description="The name of the error as words.")
    status: int
    detail: str = Field(description="What was refused, and what to do.")


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""The responses that every route has in the OpenAPI document."""


class Refused(Exception):
    """A request is refused for a reason of HTTP, before a verb is called."""

    def __init__(self, status: int, name: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def problem(
    status: int,
    name: str,
    detail: str,
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    value = Problem(
        type=f"urn:sessionsdb:{words.replace(' ', '-').lower()}",
        title=words.capitalize(),
        status=status,
        detail=escape_hidden(detail),
        **(members or {}),
    )
    response = answer(value, status, media_type=MEDIA_TYPE)
    if (seconds := RETRY_SECONDS.get(status)) is not None:
        response.headers["Retry-After"] = seconds
    response.headers.update(headers or {})
    return response


def problem_of(error: errors.SessionsDBError) -> Response:
    """Return the response for an error of a verb."""
    status, detail = status_and_detail(error)
    members = {name: value for name in _SHOWN if (value := getattr(error, name, None)) is not None}
    return problem(status, _public_name(error), detail, members)


def _public_name(error: errors.SessionsDBError) -> str:
    """Return the name of the error's class, or of the public class that it is derived from."""
    kinds = type(error).__mro__
    return next(kind.__name__ for kind in kinds if kind.__module__ == errors.__name__)


def status_and_detail(error: errors.SessionsDBError) -> tuple[int, str]:
    """Return the status for an error of a verb, and the sentence for the client."""
    kinds = [kind for kind in type(error).__mro__ if kind in _STATUS]
    status = _STATUS[kinds[0]] if kinds else 409
    if status == 503 and isinstance(error, errors.StorageError):
        log.error("the database failed: %s", error)
        return status, "the database failed; try again later, the log of the server says more"
    if status == 500:
        log.error("%s", error)
    return status, str(error)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of this app with a problem."""

    @app.exception_handler(errors.SessionsDBError)
    async def of_a_verb(_: Request, error: errors.SessionsDBError) -> Response:
        return problem_of(error)

    @app.exception_handler(NotOpen)
    async def of_a_closed_handle(_: Request, error: NotOpen) -> Response:
        log.error("%s", error)
        return problem(503, "DatabaseClosed", "the server has closed its database; try again")

    @app.exception_handler(Refused)
    async def of_http(_: Request, error: Refused) -> Response:
        return problem(error.status, error.name, str(error), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def of_an_argument(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return problem(422, "InvalidRequest", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def of_a_route(request: Request, error: HTTPException) -> Response:
        name = _NAMES.get(error.status_code, "Refused")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_at(app, request.scope))
        return problem(error.status_code, name, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        log.error("a request failed in an unforeseen way", exc_info=error)
        return problem(500, "UnexpectedError", "the server failed; its log says more")


def _methods_at(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods that a path has. The router names those of its first route only."""
    # A mount changed the root of the scope.
    outer = {**scope, "root_path": scope.get("app_root_path", scope.get("root_path", ""))}
    return [
        method
        for method in _METHODS
        if any(_answers(route, {**outer, "method": method}) for route in app.routes)
    ]


def _answers(route: BaseRoute, scope: Scope) -> bool:
    # A mount matches each method. The only one has files.
    if isinstance(route, Mount) and scope["method"] not in ("GET", "HEAD"):
        return False
    return route.matches(scope)[0] is Match.FULL
