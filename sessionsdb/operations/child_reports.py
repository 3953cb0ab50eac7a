"""Reports of children: what came of a spawned session is sent to its parent, once.

A report tells of one event: the commit of the child's first reply, the death of its prompt, or the
end or deletion of the child. The transaction of the event sends it. So it exists exactly if the
event took place. The column ``report`` of the child's row is ``each`` until then. Its change is
the proof that no other report was sent.

A report never fails its event. It enters the inbox of the parent past ``Limits.pending``. It is
dropped if the parent has ended or is gone.

The transaction must hold the mailboxes of child and parent before, both locked in key order, and
then their sessions. A look before the locks, ``open_among``, tells which parents that are: ``each``
is set by the spawn alone, and a child gets no other parent. The deletion of the parent takes the
parent from the child, and locks the child too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.extra import encode_extra
from sessionsdb.messages.json_text import replace_unstorable
from sessionsdb.operations import question_answers
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import PROMPT_POSITION, Chain, Commit, Send
from sessionsdb.operations.keys import SessionKey, ids_by_namespace
from sessionsdb.operations.row_locks import lock_sessions
from sessionsdb.types import Limits, Receipt

OWN_AUTHOR = "sessionsdb"
"""The author of a report whose words are not the child's."""

UNLIMITED = Limits(pending=2**31 - 1, hops=2**31 - 1)

EMPTY_REPLY = "(The reply is empty.)"

ERROR_CHARACTERS = 500

Event = Literal["reply", "dead", "ended"]
"""What came of a child: its first reply, the death of its prompt, or its end."""


class ChildReport(NamedTuple):
    """The message that tells a parent what came of its child."""

    child: SessionKey
    event: Event
    text: str

    @property
    def extra(self) -> str | None:
        author = None if self.event == "reply" else OWN_AUTHOR
        return encode_extra(author, {"report": self.event})


def of_commit(turn: Commit) -> ChildReport | None:
    """Return the report of a turn that is to be committed, ``None`` if it has none to send."""
    reply = turn.reply if turn.lease.reports else None
    if reply is None:
        return None
    return ChildReport(turn.lease.key, "reply", reply.content or EMPTY_REPLY)


def of_death(child: SessionKey, error: str) -> ChildReport:
    """Tell the death of a prompt with the first line of its error. The traceback is no news."""
    first_line = next(iter(error.splitlines()), "")[:ERROR_CHARACTERS]
    return ChildReport(
        child,
        "dead",
        f"Session {child[1]} gave no reply: its task failed in the last attempt. {first_line}",
    )


def of_end(child: SessionKey, reason: str | None) -> ChildReport:
    told = "" if not reason else f" Reason: {reason}"
    return ChildReport(
        child, "ended", f"Session {child[1]} was ended before it gave a reply.{told}"
    )


_PROMPT = """
FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :id AND i.position = :prompt
"""
_PROMISE = Statement(f"""
UPDATE sessions
SET report = 'each', report_hops = (SELECT i.hops {_PROMPT}),
    report_origin = (SELECT i.origin {_PROMPT})
WHERE namespace = :namespace AND id = :id
""")


def promise(connection: Connection, namespace: str, child: str) -> None:
    """Mark a new child as one that reports, with the place of its prompt in a chain of sends."""
    _PROMISE.rows(connection, {"namespace": namespace, "id": child, "prompt": PROMPT_POSITION})


# No condition on the parent: SQLite would read all children of the namespace, 8 ms with 50,000.
@cache
def _open_among(in_ids: str) -> Statement:
    return Statement(f"""
SELECT id, parent_id FROM sessions
WHERE namespace = :namespace AND id {in_ids} AND report = 'each'
""")


def open_among(
    connection: Connection, keys: Collection[SessionKey]
) -> dict[SessionKey, SessionKey]:
    """Return the children of these whose report is still to be sent, each with its parent."""
    dialect = dialect_of(connection)
    found: dict[SessionKey, SessionKey] = {}
    for namespace, ids in ids_by_namespace(keys).items():
        rows = _open_among(dialect.in_ids).rows(
            connection, {"namespace": namespace, **dialect.ids_values(ids)}
        )
        for child, parent in rows:
            if parent is not None:
                found[(namespace, child)] = (namespace, parent)
    return found


def lock_and_send(
    connection: Connection, reports: Sequence[ChildReport], parents: Mapping[SessionKey, SessionKey]
) -> bool:
    """Lock the sessions, and send the reports. The mailboxes are locked already."""
    if not parents:
        return False
    lock_sessions(connection, [*parents, *parents.values()])
    return send(connection, reports)


# The change is the proof that no other report was sent.
_TAKE = Statement("""
UPDATE sessions SET report = 'sent'
WHERE namespace = :namespace AND id = :id AND report = 'each'
RETURNING parent_id, report_hops, report_origin
""")
_DROP = Statement("""
UPDATE sessions SET report = 'dropped' WHERE namespace = :namespace AND id = :id
""")


def send(connection: Connection, reports: Sequence[ChildReport]) -> bool:
    """Send each report that is still to be sent. Return whether any was queued.

    The mailboxes and the sessions of the children and of their parents are locked.
    """
    sent = False
    for report in reports:
        namespace, child = report.child
        taken = _TAKE.row(connection, {"namespace": namespace, "id": child})
        if taken is None:
            continue
        parent, hops, origin = taken
        if parent is not None:
            request = Send(
                namespace,
                parent,
                StoredMessage("user", replace_unstorable(report.text), None),
                fingerprint=uuid4().hex,
                sender=child,
                chain=Chain(hops or 0, origin),
                extra=report.extra,
            )
            [answer] = question_answers.send(connection, [request], UNLIMITED)
            if isinstance(answer, Receipt):
                sent = True
                continue
        _DROP.rows(connection, {"namespace": namespace, "id": child})
    return sent
