"""A clock for ``SessionsDB(clock=…)`` that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument


class ManualClock:
    """The time of a SQLite database in a test. It moves only by ``advance`` and ``move_to``.

    ::

        clock = ManualClock()
        async with SessionsDB("sqlite://", clock=clock) as db:
            await db.broker.schedule("chat-1", "Good morning.", cron="0 9 * * *")
            clock.advance(timedelta(days=1))
            await drain(db, handler)

    It decides when a schedule is due, a question expires, a backoff is over and a lease runs out.
    It is also the time of all rows. ``drain`` sees a new time at once, a worker that runs in the
    background at its next poll. Timeouts of ``wait`` and of turns are real time. PostgreSQL uses
    the clock of its server.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)) -> None:
        self._now = _in_utc(start)

    def __call__(self) -> datetime:
        """Return the present, in UTC."""
        return self._now

    def advance(self, by: timedelta | float) -> datetime:
        """Move forward by a ``timedelta`` or a number of seconds, and return the new time.

        Raises ``InvalidArgument`` for a step back: times in a database never go back.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        self._now += timedelta(seconds=validation.seconds(seconds, "by"))
        return self._now

    def move_to(self, moment: datetime) -> datetime:
        """Move forward to a moment with a time zone, and return it in UTC.

        Raises ``InvalidArgument`` for a moment without a zone, and for one in the past.
        """
        moment = _in_utc(moment)
        if moment < self._now:
            raise InvalidArgument(
                f"the clock stands at {self._now.isoformat()} and never goes back; make another "
                f"ManualClock to begin at {moment.isoformat()}"
            )
        self._now = moment
        return moment


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise InvalidArgument("the time of a clock needs a time zone, for example tzinfo=UTC")
    return moment.astimezone(UTC)
