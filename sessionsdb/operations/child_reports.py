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
from typing import Literal, NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, select, tuple_, update

from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.extra import encode_extra
from sessionsdb.messages.json_text import replace_unstorable
from sessionsdb.operations import question_answers
from sessionsdb.operations.inbox_types import PROMPT_POSITION, Chain, Commit, Send
from sessionsdb.operations.keys import SessionKey, chunks
from sessionsdb.operations.row_conditions import is_message
from sessionsdb.operations.row_locks import lock_sessions
from sessionsdb.schema import inbox, sessions
from sessionsdb.types import Limits, Receipt

OWN_AUTHOR = "sessionsdb"
"""The author of a report whose words are not the child's."""

UNLIMITED = Limits(pending=2**31 - 1, hops=2**31 - 1)

_STILL_OPEN = sessions.c.report == "each"

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


def promise(connection: Connection, namespace: str, child: str) -> None:
    """Mark a new child as one that reports, with the place of its prompt in a chain of sends."""
    prompt = is_message(namespace, child, PROMPT_POSITION)
    connection.execute(
        update(sessions)
        .where(*_is_session((namespace, child)))
        .values(
            report="each",
            report_hops=select(inbox.c.hops).where(*prompt).scalar_subquery(),
            report_origin=select(inbox.c.origin).where(*prompt).scalar_subquery(),
        )
    )


def open_among(
    connection: Connection, keys: Collection[SessionKey]
) -> dict[SessionKey, SessionKey]:
    """Return the children of these whose report is still to be sent, each with its parent."""
    found: dict[SessionKey, SessionKey] = {}
    for chunk in chunks(sorted(keys)):
        rows = connection.execute(
            select(sessions.c.namespace, sessions.c.id, sessions.c.parent_id).where(
                tuple_(sessions.c.namespace, sessions.c.id).in_(chunk),
                _STILL_OPEN,
                sessions.c.parent_id.is_not(None),
            )
        )
        for row in rows:
            found[(row.namespace, row.id)] = (row.namespace, row.parent_id)
    return found


def lock_and_send(
    connection: Connection, reports: Sequence[ChildReport], parents: Mapping[SessionKey, SessionKey]
) -> bool:
    """Lock the sessions, and send the reports. The mailboxes are locked already."""
    if not parents:
        return False
    lock_sessions(connection, [*parents, *parents.values()])
    return send(connection, reports)


def send(connection: Connection, reports: Sequence[ChildReport]) -> bool:
    """Send each report that is still to be sent. Return whether any was queued.

    The mailboxes and the sessions of the children and of their parents are locked.
    """
    sent = False
    for report in reports:
        namespace, child = report.child
        row = connection.execute(
            update(sessions)
            .where(*_is_session(report.child), _STILL_OPEN)
            .values(report="sent")
            .returning(sessions.c.parent_id, sessions.c.report_hops, sessions.c.report_origin)
        ).one_or_none()
        if row is None:
            continue
        if row.parent_id is not None:
            request = Send(
                namespace,
                row.parent_id,
                StoredMessage("user", replace_unstorable(report.text), None),
                fingerprint=uuid4().hex,
                sender=child,
                chain=Chain(row.report_hops or 0, row.report_origin),
                extra=report.extra,
            )
            [answer] = question_answers.send(connection, [request], UNLIMITED)
            if isinstance(answer, Receipt):
                sent = True
                continue
        connection.execute(
            update(sessions).where(*_is_session(report.child)).values(report="dropped")
        )
    return sent


def _is_session(key: SessionKey) -> tuple[ColumnElement[bool], ...]:
    return sessions.c.namespace == key[0], sessions.c.id == key[1]
