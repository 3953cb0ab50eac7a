"""Render pages. All stored text is hostile: templates escape it, and these functions bound it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sessionsdb.admin.tokens import RIGHTS
from sessionsdb.types import SearchHit
from sessionsdb.web.api.access import Caller
from sessionsdb.web.pages.code_colours import shared_time
from sessionsdb.web.pages.message_html import MAX_TEXT, message_html, visible

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def page(
    template: str,
    caller: Caller | None,
    *,
    status: int = 200,
    has_links: bool = False,
    **values: Any,
) -> HTMLResponse:
    """Return a page made from a template.

    ``has_links``: whether a page without a caller shows the links to the other pages.
    """
    rights = None if caller is None else caller.rights
    namespace = None if caller is None else caller.db.namespace
    with shared_time():
        body = ENVIRONMENT.get_template(template).render(
            status=status,
            has_links=has_links or caller is not None,
            rights=rights,
            may_write=caller is not None and may_write(caller),
            namespace=namespace,
            logged_in=caller is not None and caller.secret is not None,
            **values,
        )
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        # Under "no-referrer" a browser hides the origin of the page's own forms.
        "Referrer-Policy": "same-origin",
        # A page of another site that opens this one has no hold on its window.
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return HTMLResponse(body, status, headers)


def may_write(caller: Caller) -> bool:
    """Return whether the pages show forms to a caller."""
    return RIGHTS.index(caller.rights) >= RIGHTS.index("write")


def fragment(template: str, **values: Any) -> str:
    """Return a part of a page, as one line for a server-sent event."""
    with shared_time():
        return ENVIRONMENT.get_template(template).render(**values)


def session_url(id: str, rest: str = "") -> str:
    return f"/sessions/{segment(id)}{rest}"


def segment(text: str) -> str:
    """Return a text as one part of a path. The filter ``urlencode`` of Jinja keeps slashes."""
    return quote(text, safe="")


def form_key() -> str:
    """Return a new idempotency key for a form, so that a form that is sent twice acts once."""
    return uuid4().hex


def moment(value: datetime | None) -> Markup:
    """Return a time element. A script shows it in the zone of the reader."""
    if value is None:
        return Markup("–")
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="milliseconds"), utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def grouped(number: int) -> str:
    """Return a whole number with its thousands apart, as in ``12,345``."""
    return f"{number:,}"


def duration(seconds: float | None) -> str:
    """Return a length of time with at most two units, as in ``3 min 12 s``."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def found_parts(hit: SearchHit) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a snippet in their order, each with whether it is a found word."""
    place = 0
    for begin, end in hit.marks:
        yield hit.snippet[place:begin], False
        yield hit.snippet[begin:end], True
        place = end
    yield hit.snippet[place:], False


def as_json(value: Any) -> str:
    return visible(json.dumps(value, indent=2, ensure_ascii=False)[:MAX_TEXT])


ENVIRONMENT = Environment(
    loader=PackageLoader("sessionsdb.web.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(
    moment=moment,
    duration=duration,
    grouped=grouped,
    message=message_html,
    visible=visible,
    pretty=as_json,
    parts=found_parts,
    segment=segment,
)
ENVIRONMENT.globals.update(session_url=session_url, form_key=form_key, max_text=MAX_TEXT)
