"""The application of the API: its routes, its errors and its OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from sessionsdb._version import __version__
from sessionsdb.web.api import events, messages, schedules, sessions, transcripts, transfer
from sessionsdb.web.api.access import SCHEME, Gate, GuardedRoute, Reader
from sessionsdb.web.api.problems import RESPONSES, Problem, add_handlers

PREFIX = "/api/v1"


def api_application(gate: Gate) -> FastAPI:
    """Return the API for callers that ``gate`` lets in. Its paths begin with ``PREFIX``.

    The pages of FastAPI for the document are off: they load scripts from other hosts.
    """
    app = FastAPI(
        title="sessionsdb",
        version=__version__,
        description="Durable sessions of AI agents. Each call is a verb of the Python API.",
        openapi_url=None,  # the route below needs the right to read
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        # A path has one form: a redirect would lead to another host behind a proxy.
        redirect_slashes=False,
    )
    app.state.gate = gate
    app.router.route_class = GuardedRoute
    router = APIRouter(prefix=PREFIX, responses=RESPONSES, dependencies=[Depends(SCHEME)])
    for part in (sessions, transcripts, messages, schedules, events, transfer):
        router.include_router(part.router)
    app.include_router(router)

    @app.get(f"{PREFIX}/openapi.json", include_in_schema=False)
    async def document(_caller: Reader) -> Response:
        return JSONResponse(app.openapi())

    add_handlers(app)
    app.openapi = lambda: _document(app, token_is_optional=gate.open_access)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


def _document(app: FastAPI, *, token_is_optional: bool) -> dict[str, Any]:
    """Return the OpenAPI document. Every error of every route is a ``Problem``."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for parameter in operation.get("parameters", ()):
                    _without_null(parameter["schema"])
                if token_is_optional:
                    operation["security"].insert(0, {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


def _without_null(schema: dict[str, Any]) -> None:
    """Take the type null from the schema of a parameter. One that is left out has no value."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])
