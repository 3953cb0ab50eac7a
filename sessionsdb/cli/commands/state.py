"""The command that shows and changes a state: state."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from sessionsdb import SessionsDB, State
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id


@with_database
async def state(
    db: SessionsDB,
    id: SessionArgument,
    scope: Annotated[
        Literal["session", "peer", "namespace"],
        typer.Option(
            "--scope",
            help="session is the state of this session alone, peer that of all sessions with its "
            "channel and peer, namespace that of all sessions.",
        ),
    ] = "session",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=JSON",
            help="Write a key. The value is JSON: 'name=\"Ada\"'. Repeat it for several.",
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="KEY", help="Remove a key. Repeat it for several."),
    ] = None,
    expected_version: Annotated[
        int | None,
        typer.Option(
            "--expected-version",
            metavar="N",
            min=0,
            help="Write only at this version of the state.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show the state of a session, or change keys of it.

    A state is JSON by key, which agents keep beside the transcript. Without
    --set and --remove it is shown. Keys that are not named stay as they are.

    Examples:

        sessionsdb state chat-1
        sessionsdb state chat-1 --scope peer --set 'language="fr"' --remove draft
    """
    changes: dict[str, Any] = dict(map(_assignment, set_ or []))
    if both := changes.keys() & set(remove or []):
        raise typer.BadParameter(f"--set and --remove name the same key: {min(both)}.")
    changes |= dict.fromkeys(remove or [])
    if expected_version is not None and not changes:
        raise typer.BadParameter("--expected-version needs --set or --remove.")
    id = await whole_id(db, id, writes=bool(changes))
    if changes:
        found = await db.store.update_state(
            id, changes, scope=scope, expected_version=expected_version
        )
    else:
        found = await db.store.state(id, scope=scope)
    _show(found, json_)


def _assignment(given: str) -> tuple[str, Any]:
    key, separator, text = given.partition("=")
    if not separator:
        raise typer.BadParameter(f"--set takes KEY=JSON, not {given!r}.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"the value of --set {key} is not JSON: {error}; write text in quotes, '\"text\"'."
        ) from error
    if value is None:
        raise typer.BadParameter(f"--set {key} can't be null; use --remove {key}.")
    return key, value


def _show(found: State, json_: bool) -> None:
    if json_:
        output.print_json({"values": found.values, "version": found.version})
        return
    for key, value in found.values.items():
        output.say(f"{output.one_line(key)} = {json.dumps(value)}")
    output.note(f"version {found.version}" if found.values else "no keys")
