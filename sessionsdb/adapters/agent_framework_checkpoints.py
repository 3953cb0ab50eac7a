"""``CheckpointStorage``: the checkpoints of workflows of Microsoft Agent Framework."""

from __future__ import annotations

import base64
import math
import pickle
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException
from agent_framework._workflows._checkpoint_encoding import (
    _PICKLE_MARKER,
    _TYPE_MARKER,
    decode_checkpoint_value,
    encode_checkpoint_value,
)
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.framework_sessions import load_messages, lock_or_create
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import StoredMessage, encode
from sessionsdb.messages.json_text import dump
from sessionsdb.operations import editing, entries, heads, state, transcripts
from sessionsdb.operations.editing import EditRequest
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import StateUpdate, session_scope
from sessionsdb.types import TranscriptEntry
from sessionsdb.validation import MAX_INTEGER

FORM: Final = "agent-framework-checkpoint"

_KEY = "checkpoint:"
_LATEST = "latest"
"""The key of the newest checkpoint's id and time in the state of a workflow's session."""


class CheckpointStorage:
    """Keeps the checkpoints of workflows, one transcript for each name of a workflow.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL. ``allowed_checkpoint_types``: the
    types that a checkpoint may hold besides types of Python and the framework, each as
    ``"module:qualname"``. Others are refused when a checkpoint is saved and when it is loaded.

    The session of a workflow has the channel ``agent-framework-checkpoint``, the workflow's name as
    its peer, and the id ``agent-framework-checkpoint/NAME``. Each checkpoint is one message, with
    the key ``checkpoint:ID``. Values without a JSON form are pickled by the framework. So only the
    application may write to this database: a pickle runs code when it is loaded.
    """

    def __init__(
        self,
        db_or_url: SessionsDB | AsyncEngine | str,
        *,
        allowed_checkpoint_types: Collection[str] | None = None,
    ) -> None:
        self._handles = Handles(db_or_url)
        self._allowed = frozenset(allowed_checkpoint_types or ())

    def stored_id(self, workflow_name: str) -> str:
        """Return the id under which ``broker``, ``store`` and the reports know a workflow."""
        return ids.join(FORM, workflow_name)

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Store a checkpoint, in place of one with the same id, and return its id.

        Raises ``WorkflowCheckpointException`` if it could not be loaded again.
        """
        id = checkpoint.checkpoint_id
        db = await self._handles.current()
        try:
            encoded = _with_finite_numbers(encode_checkpoint_value(checkpoint.to_dict()))
            self._decode(encoded)
            stored = encode(encoded, max_bytes=db.limits.message_bytes)
            registration = self._registration(db, checkpoint.workflow_name)
            new = _Checkpoint(id, _key(id), checkpoint.timestamp, stored)
        except WorkflowCheckpointException:
            raise
        except Exception as error:
            raise WorkflowCheckpointException(
                f"checkpoint {id} can't be stored, or not be loaded again: {error}"
            ) from error
        operation = partial(_save, registration=registration, new=new)
        await open_database_of(db).write(operation, wakes=())
        return id

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        """Return a checkpoint as a new object. Raises ``WorkflowCheckpointException``."""
        found = await self._find(checkpoint_id)
        if found is None:
            raise WorkflowCheckpointException(f"No checkpoint found with ID {checkpoint_id}")
        return self._decode(found.message)

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        """Return the checkpoints of a workflow, in the order of their first saves."""
        db = await self._handles.current()
        registration = self._registration(db, workflow_name)
        found = await open_database_of(db).read(partial(load_messages, registration=registration))
        return [self._decode(message) for message in found]

    async def delete(self, checkpoint_id: str) -> bool:
        """Delete a checkpoint, and return whether there was one."""
        found = await self._find(checkpoint_id)
        if found is None:
            return False
        db = await self._handles.current()
        operation = partial(
            _delete, namespace=db.namespace, session_id=found.session_id, id=checkpoint_id
        )
        return await open_database_of(db).write(operation, wakes=())

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        """Return the checkpoint of a workflow with the latest timestamp, or ``None``.

        Of several with that timestamp the first one counts. The others are not read.
        """
        db = await self._handles.current()
        registration = self._registration(db, workflow_name)
        found = await open_database_of(db).read_snapshot(
            partial(_read_latest, registration=registration)
        )
        return None if found is None else self._decode(found)

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        """Return the ids of the checkpoints of a workflow, in the order of their first saves."""
        db = await self._handles.current()
        registration = self._registration(db, workflow_name)
        keys = await open_database_of(db).read(partial(_read_keys, registration=registration))
        return [key.removeprefix(_KEY) for key in keys]

    async def close(self) -> None:
        """Close the database, if this storage opened it. The next use opens it again."""
        await self._handles.close()

    async def _find(self, checkpoint_id: str) -> TranscriptEntry | None:
        try:
            key = _key(checkpoint_id)
        except InvalidArgument:
            return None
        db = await self._handles.current()
        return await open_database_of(db).read(
            partial(entries.find, namespace=db.namespace, key=key, session_id=None)
        )

    def _registration(self, db: SessionsDB, workflow_name: str) -> Registration:
        stored_id = validation.session_id(self.stored_id(workflow_name))
        return Registration(db.namespace, stored_id, FORM, workflow_name, metadata=forms.mark(FORM))

    def _decode(self, message: dict[str, Any]) -> WorkflowCheckpoint:
        fields = decode_checkpoint_value(message, allowed_types=self._allowed)
        return WorkflowCheckpoint.from_dict(fields)


# ---- values --------------------------------------------------------------------------------------


class _Checkpoint(NamedTuple):
    """A checkpoint to store."""

    id: str
    key: str
    timestamp: str
    message: StoredMessage


def _key(checkpoint_id: str) -> str:
    return validation.message_key(f"{_KEY}{checkpoint_id}")


def _moment(timestamp: str) -> datetime:
    """Return the time of a timestamp. One without a zone is in UTC, one that is no time is the
    earliest."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except (TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _with_finite_numbers(value: Any) -> Any:
    """Return an encoded value in which infinity and NaN, which JSON does not have, are pickled."""
    if isinstance(value, float) and not math.isfinite(value):
        pickled = base64.b64encode(pickle.dumps(value)).decode("ascii")
        return {_PICKLE_MARKER: pickled, _TYPE_MARKER: "builtins:float"}
    if isinstance(value, dict):
        return {key: _with_finite_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_finite_numbers(item) for item in value]
    return value


# ---- operations ----------------------------------------------------------------------------------


def _save(connection: Connection, registration: Registration, new: _Checkpoint) -> None:
    namespace = registration.namespace
    head = lock_or_create(connection, registration)
    before = entries.find(connection, namespace, new.key, None)
    if before is not None and before.session_id == head.id:
        request = EditRequest(namespace, head.id)
        editing.replace(connection, request, before.seq, new.message)
        _find_latest(connection, namespace, head.id)
        return
    if before is not None:  # the workflow has another name now
        _delete(connection, namespace, before.session_id, new.id)
    heads.append(connection, namespace, head, [new.message], [new.key])
    latest = _latest(connection, namespace, head.id)
    if latest is None or _moment(new.timestamp) > _moment(latest["timestamp"]):
        _set_latest(connection, namespace, head.id, (new.id, new.timestamp))


def _delete(connection: Connection, namespace: str, session_id: str, id: str) -> bool:
    head = heads.lock(connection, namespace, session_id)
    found = entries.find(connection, namespace, _key(id), session_id)
    if head is None or found is None:
        return False
    heads.remove(connection, namespace, head, found.seq)
    latest = _latest(connection, namespace, session_id)
    if latest is None or latest["id"] == id:
        _find_latest(connection, namespace, session_id)
    return True


def _read_latest(connection: Connection, registration: Registration) -> dict[str, Any] | None:
    namespace, session_id = registration.namespace, registration.session_id
    latest = _latest(connection, namespace, session_id)
    if latest is None:
        return None
    found = entries.find(connection, namespace, _key(latest["id"]), session_id)
    return None if found is None else found.message


def _read_keys(connection: Connection, registration: Registration) -> list[str]:
    return heads.keys(connection, registration.namespace, registration.session_id)


def _latest(connection: Connection, namespace: str, session_id: str) -> dict[str, str] | None:
    found = state.read(connection, session_scope(namespace, session_id)).values.get(_LATEST)
    return found if isinstance(found, dict) else None


def _find_latest(connection: Connection, namespace: str, session_id: str) -> None:
    """Read all checkpoints of a locked session for the latest one, and note it."""
    stored = transcripts.load(connection, namespace, session_id) or []
    latest = max(stored, key=lambda message: _moment(message["timestamp"]), default=None)
    noted = None if latest is None else (latest["checkpoint_id"], latest["timestamp"])
    _set_latest(connection, namespace, session_id, noted)


def _set_latest(
    connection: Connection, namespace: str, session_id: str, latest: tuple[str, str] | None
) -> None:
    text = None if latest is None else dump({"id": latest[0], "timestamp": latest[1]})
    update = StateUpdate(session_scope(namespace, session_id), session_id, {_LATEST: text})
    state.merge(connection, [update], max_bytes=MAX_INTEGER)
