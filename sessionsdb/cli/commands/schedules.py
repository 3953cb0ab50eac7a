"""Commands on messages that are sent later: schedule, schedules, unschedule."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from sessionsdb import Schedule, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument, json_object
from sessionsdb.cli.console.stdin import text_or_stdin
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id
from sessionsdb.cron import InvalidCron, read_moment

_LATER = re.compile(r"\+([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@with_database
async def schedule(
    db: SessionsDB,
    id: SessionArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            callback=text_or_stdin,
            help="The message. - reads it from standard input.",
        ),
    ],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="WHEN",
            help="Send it once: +45s, +30m, +2h or +1d from now, or a time in ISO 8601. A time "
            "without an offset is read in --tz.",
        ),
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option(
            "--cron",
            metavar="EXPR",
            help="Send it again and again: minute, hour, day of the month, month, day of the week.",
        ),
    ] = None,
    tz: Annotated[
        str,
        typer.Option("--tz", metavar="ZONE", help="The time zone, like Europe/Berlin."),
    ] = "UTC",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Replaces the session's schedule of that name."
        ),
    ] = None,
    author: Annotated[
        str | None,
        typer.Option("--author", metavar="NAME", help="Who speaks, for people."),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option("--metadata", metavar="JSON", help="A JSON object beside the message."),
    ] = None,
    catch_up: Annotated[
        Literal["one", "all"],
        typer.Option(
            "--catch-up",
            help="For the times that passed while no worker ran: send one message, or one each.",
        ),
    ] = "one",
    json_: AsJson = False,
) -> None:
    """Send a message to a session later, once or again and again.

    A worker sends it when it is due. Give --at or --cron.

    Examples:

        sessionsdb schedule chat-1 'Call Ada back.' --at +2h
        sessionsdb schedule chat-1 Hello --at 2027-01-04T09:00 --tz Europe/Berlin
        sessionsdb schedule chat-1 'Sum up.' --cron '0 22 * * *' --name night
    """
    if (at is None) == (cron is None):
        raise typer.BadParameter("give --at or --cron.")
    made = await db.broker.schedule(
        await whole_id(db, id, writes=True),
        text,
        at=None if at is None else _moment(at, tz),
        cron=cron,
        tz=tz,
        name=name,
        author=author,
        metadata=None if metadata is None else json_object(metadata, "--metadata"),
        catch_up=catch_up,
    )
    if json_:
        output.print_json(made)
        return
    output.say(f"scheduled: {made.id}")
    due, session = f"    due {_due(made)}", f"for session {made.session_id}"
    output.say_fitting(f"{due} {session}", due, f"    {session}")


@with_database
async def schedules(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only schedules of this session.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show the messages that are sent later, the next one first.

    A message that was sent once is not shown any more.

    Examples:

        sessionsdb schedules
        sessionsdb schedules chat-1 --json
    """
    found = await db.broker.schedules(None if id is None else await whole_id(db, id))
    if json_:
        output.print_json_array(found)
        return
    if not found:
        output.note("no schedules")
    for one in found:
        _show(one)


@with_database
async def unschedule(
    db: SessionsDB,
    schedule_id: Annotated[
        str, typer.Argument(metavar="SCHEDULE_ID", help="The id, from schedule or schedules.")
    ],
) -> None:
    """Delete a schedule. The messages that it has sent stay.

    Examples:

        sessionsdb unschedule schedule-5b0a2f1c-6d1e-4c59-9d0a-3f1f0c9f7a11
    """
    if await db.broker.unschedule(schedule_id):
        output.say(f"deleted: {schedule_id}")
    else:
        output.note(f"no schedule {schedule_id}: nothing was deleted")


def _moment(text: str, tz: str) -> datetime:
    """Return the moment that ``--at`` names."""
    later = _LATER.fullmatch(text.strip())
    try:
        if later is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[later[2]]: int(later[1])})
        return read_moment(text, tz)
    except InvalidCron as error:
        raise typer.BadParameter(f"--tz: {error}") from None
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"--at: {text!r:.60} is no time: write +45s, +30m, +2h, +1d, or a time like "
            "2027-01-04T09:00 or 2027-01-04T09:00:00+01:00."
        ) from None


def _due(one: Schedule) -> str:
    return f"{output.format_time(one.due_at)} UTC"


def _show(one: Schedule) -> None:
    place = f"{_due(one)}  {one.session_id}"
    if one.name is None:
        output.say(place, "bold")
    else:
        output.say_fitting(f"{place}, {one.name}", place, f"    {one.name}", style="bold")
    output.say(f"    {one.id}")
    output.say("    once" if one.cron is None else f"    cron {one.cron} ({one.tz})")
    if one.refused_at is not None:
        output.say("    waits for room in the inbox", "bold red")
    content = one.message.get("content")
    text = content if isinstance(content, str) else output.as_json(one.message)
    output.say(f"    {output.cut(text, 74)}")
