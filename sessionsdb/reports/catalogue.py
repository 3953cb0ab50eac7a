"""The report views: their columns, the meaning of each column, and the order of the rows.

Names and columns are public API. Migrations create the views from the SQL in ``views/``. The
meanings below are also the comments on the views in PostgreSQL, and the reference in
``docs/reporting.md``. So a change of a meaning needs a migration.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ColumnKind = Literal["text", "integer", "seconds", "time", "day"]
"""The kind of a column's values.

``seconds`` is a float. ``time`` is UTC with microseconds: ``timestamptz`` on PostgreSQL, and text
``YYYY-MM-DD HH:MM:SS.ffffff`` on SQLite. ``day`` is a day in UTC: ``date`` on PostgreSQL, and text
``YYYY-MM-DD`` on SQLite.
"""


class Column(NamedTuple):
    name: str
    kind: ColumnKind
    meaning: str


class View(NamedTuple):
    """A view, and the report that reads it."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    """The columns that order the rows, with ``-`` before a descending column."""
    display: tuple[str, ...]
    """The names of the columns for people. All columns do not fit on a screen."""
    since: str | None
    """The column that ``since`` filters, ``None`` if the report shows the present."""
    channel: str
    """The column that ``channel`` filters."""

    @property
    def report(self) -> str:
        """The name of the report."""
        return self.name.removeprefix("report_")

    @property
    def display_columns(self) -> tuple[Column, ...]:
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.display)


NAMESPACE = Column("namespace", "text", "The tenant. Every view has it first.")

SESSIONS = View(
    "report_sessions",
    "One row a session: what it is, how it stands, and what its inbox has cost.",
    (
        NAMESPACE,
        Column("session_id", "text", "The session's id, unique in its namespace."),
        Column("channel", "text", "Where it came from; `spawned` for a spawned child."),
        Column("peer", "text", "Who is at the other end."),
        Column("parent_id", "text", "The session that spawned it; NULL for a root."),
        Column("root_id", "text", "The top of its tree; its own id for a root."),
        Column("depth", "integer", "How many sessions are above it; 0 for a root."),
        Column("children", "integer", "Sessions right below it, ended ones included."),
        Column("model", "text", "The model it is set to use; NULL if none is set."),
        Column("created_at", "time", "When it was registered, spawned or first saved."),
        Column("updated_at", "time", "When its transcript last changed."),
        Column(
            "last_active",
            "time",
            "When a message was last sent to it or its transcript last changed.",
        ),
        Column("ended_at", "time", "When it was ended; NULL while it lives."),
        Column("end_reason", "text", "The reason that was given for the end."),
        Column(
            "state",
            "text",
            "`ended`, `running` (a worker holds it), `held` (by an open question), `retrying` (a"
            " failed message waits for its next attempt), `ready` (a message waits for a worker) or"
            " `idle`.",
        ),
        Column("message_count", "integer", "Messages in its transcript."),
        Column("pending", "integer", "Inbox messages that wait, without those a worker has."),
        Column("running", "integer", "Inbox messages that a worker has."),
        Column("turns", "integer", "Turns committed. A turn over a batch is one."),
        Column("dead", "integer", "Inbox messages given up after their last attempt."),
        Column(
            "input_tokens",
            "integer",
            "Tokens in, as its handler reported, failed and stopped turns included; 0 if it did"
            " not.",
        ),
        Column("output_tokens", "integer", "Tokens out, likewise."),
        Column(
            "last_error",
            "text",
            "Why the latest attempt failed, of the messages that are dead, cancelled or tried"
            " again; a message that was answered in the end has none.",
        ),
        Column("forked_from", "text", "The session that it is a fork of; NULL if it is no fork."),
        Column("held_at", "time", "When its open question was asked; NULL unless it is held."),
        Column("held_seconds", "seconds", "How long it has been held, seconds; NULL unless it is."),
        Column("schedules", "integer", "Its messages that are to be sent later."),
        Column(
            "late_seconds",
            "seconds",
            "How long the earliest of its schedules has been due, seconds; NULL if none is due.",
        ),
    ),
    ("-last_active", "session_id"),
    ("session_id", "channel", "state", "last_active", "message_count", "pending", "turns", "dead",
     "input_tokens", "output_tokens", "last_error"),
    "last_active",
    "channel",
)  # fmt: skip

TURNS = View(
    "report_turns",
    "One row a handled message: answered, dead after its last attempt, or cancelled after a turn"
    " had begun over it.",
    (
        NAMESPACE,
        Column("session_id", "text", "The session it was sent to."),
        Column("position", "integer", "Its place in the session's inbox; with the session's id it"
               " is the receipt."),
        Column("channel", "text", "The session's channel."),
        Column("sender", "text", "The session that sent it, or what `send` was told; else NULL."),
        Column("status", "text", "`done`, `dead` or `cancelled`."),
        Column("attempts", "integer", "Turns begun over it, since it was last requeued."),
        Column("worker", "text", "The worker of the last attempt."),
        Column("model", "text", "The model that answered, as the handler reported; else NULL."),
        Column("enqueued_at", "time", "When it was sent."),
        Column("claimed_at", "time", "When the last attempt began."),
        Column("finished_at", "time", "When it was answered, given up or cancelled."),
        Column(
            "wait_seconds",
            "seconds",
            "From `enqueued_at` to `claimed_at`, seconds. Earlier attempts and the pauses after"
            " them are in it.",
        ),
        Column(
            "work_seconds",
            "seconds",
            "From `claimed_at` to `finished_at`, seconds. A message that was cancelled between two"
            " attempts has that pause in it.",
        ),
        Column("total_seconds", "seconds", "From `enqueued_at` to `finished_at`, seconds."),
        Column(
            "input_tokens",
            "integer",
            "Tokens in of all attempts, as the handler reported; else NULL. A batch's stand with"
            " its last message, so that sums are right.",
        ),
        Column("output_tokens", "integer", "Tokens out, likewise."),
        Column(
            "first_seq",
            "integer",
            "The first transcript message its turn wrote, NULL if dead. The messages of one batch"
            " share it: committed turns are distinct pairs of `session_id` and `first_seq` where"
            " `status` is `done`. A cancelled message has it if its question was kept.",
        ),
        Column("last_seq", "integer", "The last transcript message its turn wrote."),
        Column(
            "error",
            "text",
            "Why its last attempt failed: NULL if it is done, or if none failed.",
        ),
        Column(
            "stopped_by", "text", "What cancelled it: `cancel`, `interrupt` or `end`; else NULL."
        ),
    ),
    ("-finished_at", "session_id", "position"),
    ("session_id", "position", "channel", "status", "attempts", "finished_at", "wait_seconds",
     "work_seconds", "total_seconds", "input_tokens", "output_tokens", "model", "worker"),
    "finished_at",
    "channel",
)  # fmt: skip

ACTIVITY = View(
    "report_activity",
    "Per day and channel: what happened. A day on which nothing did has no row.",
    (
        NAMESPACE,
        Column("day", "day", "The day, in UTC."),
        Column("channel", "text", "The sessions' channel."),
        Column(
            "sessions",
            "integer",
            "Sessions that were created, had a message written to the transcript, or had an inbox"
            " message handled.",
        ),
        Column("new_sessions", "integer", "Sessions created, of those that have not been deleted."),
        Column("messages", "integer", "Transcript messages written, of those still kept."),
        Column("turns", "integer", "Turns committed. A turn over a batch is one."),
        Column("dead", "integer", "Inbox messages given up after their last attempt."),
        Column(
            "input_tokens",
            "integer",
            "Tokens in of the messages handled, as handlers reported. Cancelled ones are included.",
        ),
        Column("output_tokens", "integer", "Tokens out, likewise."),
    ),
    ("-day", "channel"),
    ("day", "channel", "sessions", "new_sessions", "messages", "turns", "dead", "input_tokens",
     "output_tokens"),
    "day",
    "channel",
)  # fmt: skip

LATENCY = View(
    "report_latency",
    "Per day and channel: how long messages took that were answered on that day. Percentiles are"
    " interpolated, as percentile_cont does it.",
    (
        NAMESPACE,
        Column("day", "day", "The day they were answered on, in UTC."),
        Column("channel", "text", "The sessions' channel."),
        Column("messages", "integer", "Inbox messages answered."),
        Column("wait_p50", "seconds", "Median of the time until the last attempt began, seconds."),
        Column("wait_p95", "seconds", "Its 95th percentile, seconds."),
        Column("wait_p99", "seconds", "Its 99th percentile, seconds."),
        Column("total_p50", "seconds", "Median of the time from send to answer, seconds."),
        Column("total_p95", "seconds", "Its 95th percentile, seconds."),
        Column("total_p99", "seconds", "Its 99th percentile, seconds."),
    ),
    ("-day", "channel"),
    ("day", "channel", "messages", "wait_p50", "wait_p95", "wait_p99", "total_p50", "total_p95",
     "total_p99"),
    "day",
    "channel",
)  # fmt: skip

INBOX = View(
    "report_inbox",
    "Per channel: what waits now. A channel where nothing waits, runs, is held, scheduled or dead"
    " has no row.",
    (
        NAMESPACE,
        Column("channel", "text", "The sessions' channel."),
        Column("sessions", "integer", "Sessions that have unfinished messages."),
        Column("pending", "integer", "Messages that wait, without those a worker has."),
        Column("running", "integer", "Messages that a worker has."),
        Column("ready", "integer", "Sessions that a worker may claim now."),
        Column("retrying", "integer", "Sessions whose next message failed and is tried later."),
        Column("leased", "integer", "Sessions that a worker holds."),
        Column(
            "overdue",
            "integer",
            "Of these, leases that have run out: the worker died or froze, and another will take"
            " the session over.",
        ),
        Column("oldest_at", "time", "When the oldest message that waits was sent."),
        Column("oldest_seconds", "seconds", "Its age, seconds; NULL if none waits."),
        Column("dead", "integer", "Messages given up after their last attempt, requeueable."),
        Column("held", "integer", "Sessions that an open question holds."),
        Column("held_seconds", "seconds", "How long the longest of them has been held, seconds."),
        Column("schedules", "integer", "Messages that are to be sent later."),
        Column("due", "integer", "Of these, those whose time has come."),
        Column(
            "late_seconds",
            "seconds",
            "How long the earliest of them has been due, seconds; NULL if none is due.",
        ),
    ),
    ("channel",),
    ("channel", "sessions", "pending", "running", "ready", "retrying", "leased", "overdue",
     "oldest_seconds", "dead", "held", "due"),
    None,
    "channel",
)  # fmt: skip

TREE = View(
    "report_tree",
    "One row a session, with what it and all below it have done. In the order of `path` each tree"
    " is read from its root to its leaves.",
    (
        NAMESPACE,
        Column("root_id", "text", "The top of the tree."),
        Column("root_channel", "text", "The root's channel: where the tree came from."),
        Column("session_id", "text", "The session's id."),
        Column("parent_id", "text", "The session right above it; NULL for a root."),
        Column("depth", "integer", "How many sessions are above it; 0 for a root."),
        Column("path", "text", "The ids from the root to this session, joined by ` > `."),
        Column("channel", "text", "The session's own channel; `spawned` for a spawned child."),
        Column("turns", "integer", "Turns it committed. A turn over a batch is one."),
        Column(
            "input_tokens",
            "integer",
            "Its tokens in, as its handler reported, failed and stopped turns included.",
        ),
        Column("output_tokens", "integer", "Its tokens out, likewise."),
        Column("subtree_sessions", "integer", "Sessions in its subtree: itself and all below."),
        Column("subtree_turns", "integer", "Turns committed in its subtree."),
        Column("subtree_input_tokens", "integer", "Tokens in of its subtree."),
        Column("subtree_output_tokens", "integer", "Tokens out of its subtree."),
        Column("subtree_last_active", "time", "When a session of its subtree was last active."),
        Column("forked_from", "text", "The session that it is a fork of; NULL if it is no fork."),
    ),
    ("path",),
    ("path", "channel", "turns", "input_tokens", "output_tokens", "subtree_sessions",
     "subtree_turns", "subtree_input_tokens", "subtree_output_tokens"),
    "subtree_last_active",
    "root_channel",
)  # fmt: skip

VIEWS = (SESSIONS, TURNS, ACTIVITY, LATENCY, INBOX, TREE)
"""All views, in the order of their creation."""

REPORTS = {view.report: view for view in VIEWS}
