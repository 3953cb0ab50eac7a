"""Show an error as a page to a person who opens an address in a browser."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi import Response
from starlette.datastructures import Headers

from sessionsdb.web.api.app import PREFIX
from sessionsdb.web.api.problems import MEDIA_TYPE
from sessionsdb.web.pages.rendering import page

_WITHOUT_LINKS = (401, 403, 429)
"""The caller is refused, so the links to the other pages lead to the same refusal."""


def as_page(response: Response, path: str, headers: Headers) -> Response:
    """Return a problem as a page, if the request is of a browser that opens a page.

    ``path`` and ``headers`` are those of the request. Calls of the API, and parts of a page that a
    script asks for, keep the problem. A response that is no problem stays as it is.
    """
    wants_page = "text/html" in headers.get("accept", "")
    is_problem = response.media_type == MEDIA_TYPE
    if not is_problem or not wants_page or path.startswith(f"{PREFIX}/"):
        return response
    detail = json.loads(bytes(response.body))["detail"]
    status = response.status_code
    if detail == HTTPStatus.NOT_FOUND.phrase:
        detail = "There is no page at this address."
    has_links = status not in _WITHOUT_LINKS
    found = page("refused.html", None, status=status, has_links=has_links, detail=detail, back="/")
    for name in ("Allow", "Retry-After"):
        if (value := response.headers.get(name)) is not None:
            found.headers[name] = value
    return found
