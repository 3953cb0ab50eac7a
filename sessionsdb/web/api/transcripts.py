"""Transcripts and states: read, save, append and edit them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from sessionsdb.errors import StorageError, UnknownSession
from sessionsdb.types import Edit, Edited, State, StateScope, TranscriptEntry
from sessionsdb.web.api import bodies, results
from sessionsdb.web.api.access import GuardedRoute, Reader, Writer
from sessionsdb.web.api.answers import answer, expected_version, unchanged
from sessionsdb.web.api.encoding import Encoding
from sessionsdb.web.api.parameters import NUMBER, Limit, Seq, SessionIdPath
from sessionsdb.web.api.problems import Refused

router = APIRouter(tags=["transcripts"], route_class=GuardedRoute)

Expected = Annotated[int | None, Depends(expected_version)]

_READS = 10
"""How often a transcript that changes while it is read is read again."""


@router.get("/sessions/{id}/history", response_model=results.History)
async def history(
    caller: Reader,
    id: SessionIdPath,
    limit: Limit = 50,
    before: int | None = None,
    after: int | None = None,
    max_bytes: int | None = None,
) -> Response:
    """Show a transcript as text, newest message last."""
    found = await caller.db.broker.history(
        id, limit, before=before, after=after, max_bytes=max_bytes
    )
    return answer({"messages": found})


@router.get("/sessions/{id}/entries", response_model=results.Entries)
async def entries(
    caller: Reader,
    id: SessionIdPath,
    limit: Limit = 50,
    before: int | None = None,
    after: int | None = None,
) -> Response:
    """Show whole messages with their times, keys, senders and metadata, newest last."""
    found = await caller.db.store.entries(id, limit, before=before, after=after)
    return answer({"entries": found})


@router.get("/entries", response_model=TranscriptEntry)
async def find(caller: Reader, key: str, session: str | None = None) -> Response:
    """Find a message by its key, in one session or in the namespace."""
    found = await caller.db.store.find(key, id=session)
    if found is None:
        raise Refused(404, "UnknownKey", "no message has this key")
    return answer(found)


@router.get("/sessions/{id}/transcript", response_model=results.Transcript)
async def load(caller: Reader, id: SessionIdPath, request: Request) -> Response:
    """Return the whole transcript, with its version as the `ETag`."""
    store = caller.db.store
    for _ in range(_READS):
        version = await store.version(id)
        if version is None:
            raise UnknownSession(id)
        if (same := unchanged(request, version)) is not None:
            return same
        messages = await store.load(id)
        if messages is not None and await store.version(id) == version:
            return answer({"messages": messages, "version": version}, version=version)
    raise StorageError(f"the transcript of session {id} changes too fast to be read")


@router.put("/sessions/{id}/transcript", response_model=results.Version)
async def save(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.Messages,
    expected: Expected,
    encoding: Encoding,
) -> Response:
    """Replace the whole transcript. Creates the session if it does not exist."""
    messages = await encoding.all(caller, body.messages)
    return _version(await caller.db.store.save(id, messages, expected_version=expected))


@router.post("/sessions/{id}/transcript", response_model=results.Version)
async def append(
    caller: Writer, id: SessionIdPath, body: bodies.Append, expected: Expected, encoding: Encoding
) -> Response:
    """Add messages to the end."""
    messages = await encoding.all(caller, body.messages)
    version = await caller.db.store.append(
        id, messages, keys=body.keys, create=body.create, expected_version=expected
    )
    return _version(version)


@router.patch("/sessions/{id}/transcript", response_model=Edited)
async def edit(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.EditBody,
    expected: Expected,
    encoding: Encoding,
) -> Response:
    """Change the end of a transcript in one transaction."""
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    if "append" in given:
        given["append"] = await encoding.all(caller, body.append)
    edited = await caller.db.store.edit(id, Edit(**given, expected_version=expected))
    return answer(edited, version=edited.version)


@router.post("/sessions/{id}/transcript/pop", response_model=results.Popped)
async def pop(
    caller: Writer,
    id: SessionIdPath,
    expected: Expected,
    body: bodies.Pop = Body(default_factory=bodies.Pop),
) -> Response:
    """Remove messages from the end, and return them, newest last."""
    found = await caller.db.store.pop(id, body.count, expected_version=expected)
    return answer({"messages": found})


@router.delete("/sessions/{id}/transcript", response_model=results.Version)
async def truncate(
    caller: Writer, id: SessionIdPath, keep_through: int, expected: Expected
) -> Response:
    """Remove the messages behind a `seq`."""
    version = await caller.db.store.truncate(
        id, keep_through=keep_through, expected_version=expected
    )
    return _version(version)


# Only digits: otherwise ``PUT`` of ``/transcript/pop`` would be a call of this verb.
@router.put(f"/sessions/{{id}}/transcript/{{seq:{NUMBER}}}", response_model=results.Version)
async def replace(
    caller: Writer,
    id: SessionIdPath,
    seq: Seq,
    message: bodies.Json,
    expected: Expected,
    encoding: Encoding,
) -> Response:
    """Replace one message."""
    [given] = await encoding.all(caller, [message])
    return _version(await caller.db.store.replace(id, seq, given, expected_version=expected))


@router.get("/sessions/{id}/state", response_model=State)
async def state(
    caller: Reader, id: SessionIdPath, request: Request, scope: StateScope = "session"
) -> Response:
    """Return a state, with its version as the `ETag`."""
    found = await caller.db.store.state(id, scope=scope)
    return unchanged(request, found.version) or answer(found, version=found.version)


@router.patch("/sessions/{id}/state", response_model=State)
async def update_state(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.StateChanges,
    expected: Expected,
    scope: StateScope = "session",
) -> Response:
    """Write keys of a state, and keep the others."""
    changed = await caller.db.store.update_state(
        id, body.changes, scope=scope, expected_version=expected
    )
    return answer(changed, version=changed.version)


def _version(version: int) -> Response:
    return answer({"version": version}, version=version)
