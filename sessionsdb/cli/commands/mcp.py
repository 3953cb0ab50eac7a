"""The command that serves the session tools over MCP."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sessionsdb import InvalidArgument, SessionsDB, SessionsDBError
from sessionsdb.cli.console import logs, output
from sessionsdb.cli.decorators import with_database
from sessionsdb.tools import Visibility

if TYPE_CHECKING:
    from sessionsdb.mcp import Caller, Tokens

TOKEN_VARIABLE = "SESSIONSDB_MCP_TOKEN"


@with_database
async def mcp(
    db: SessionsDB,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="ID",
            help="The session of the caller. It limits the visible sessions, and is the parent of "
            "spawned ones. A missing session is registered.",
        ),
    ] = None,
    visibility: Annotated[
        Visibility,
        typer.Option(
            "--visibility",
            help="The sessions that the caller sees: its own, all below it too, its tree, or the "
            "namespace.",
        ),
    ] = "tree",
    max_wait: Annotated[
        float,
        typer.Option(
            "--max-wait",
            min=0,
            metavar="SECONDS",
            help="A call waits at most this long for replies. Choose less than the client's "
            "timeout.",
        ),
    ] = 45.0,
    http: Annotated[
        bool,
        typer.Option("--http", help="Serve streamable HTTP instead of standard input and output."),
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="With --http: the address to listen on. Default: 127.0.0.1. Every address except "
            "a loopback one needs a token.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65_535,
            metavar="N",
            help="With --http: the port to listen on. Default: 8765. 0 takes a free port.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="With --http: a JSON file that maps each bearer token to a session, a namespace "
            "and a visibility.",
        ),
    ] = None,
) -> None:
    """Serve the session tools over the Model Context Protocol.

    The default is standard input and output, for a client that starts the
    server itself. With --http the server has many clients. A single bearer
    token can be set in SESSIONSDB_MCP_TOKEN. Messages are answered only while
    a worker runs. Needs the extra sessionsdb[mcp].

    Examples:

        sessionsdb mcp --session my-desktop
        sessionsdb mcp --visibility namespace
        sessionsdb mcp --http --session my-desktop
        sessionsdb mcp --http --host 0.0.0.0 --tokens tokens.json
    """
    if not http and (host is not None or port is not None or tokens is not None):
        raise typer.BadParameter("--host, --port and --tokens need --http.")
    if tokens is not None and session is not None:
        raise typer.BadParameter(
            "--session can't be used with --tokens: each token has a session of its own."
        )
    with needs_extra():
        from sessionsdb.mcp import Caller, serve_http, serve_stdio
    logs.configure(verbose=False, as_json=False)
    caller = callers_of(Caller(session=session, visibility=visibility), tokens, may_have_token=http)
    if isinstance(caller, Caller) and not http:
        await serve_stdio(db, caller, max_wait_secs=max_wait)
        return
    await serve_http(
        db,
        caller,
        host=host or "127.0.0.1",
        port=8765 if port is None else port,
        max_wait_secs=max_wait,
        ready=lambda url: output.note(f"serving MCP on {url}"),
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say how to install the packages of MCP where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sessionsdb"):
            raise
        missing = (error.name or "").partition(".")[0]
        raise SessionsDBError(
            f"the MCP server needs the package {missing}; install it with: "
            "pip install 'sessionsdb[mcp]'"
        ) from error


def callers_of(
    caller: Caller, file: Path | None, *, may_have_token: bool = True
) -> Caller | Tokens:
    """Return the tokens of a file, or the one of ``TOKEN_VARIABLE``, or ``caller``."""
    from sessionsdb.mcp import Tokens

    found: Caller | Tokens = caller
    if file is not None:
        try:
            found = Tokens.read(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{file} is not UTF-8: {error.reason}") from error
    elif may_have_token and (token := os.environ.get(TOKEN_VARIABLE)):
        found = Tokens({token: caller})
    _require_scope(found.callers if isinstance(found, Tokens) else [found], file)
    if file is not None:
        _warn_if_readable(file)
    return found


def _warn_if_readable(tokens: Path) -> None:
    """Warn about a file of tokens that other users of the machine can read or change."""
    mode = stat.S_IMODE(tokens.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        output.note(
            f"warning: other users have access to {tokens} (mode {mode:04o}), and so to its "
            f"tokens; run: chmod 600 {shlex.quote(str(tokens))}"
        )


def _require_scope(callers: list[Caller], file: Path | None) -> None:
    """Refuse a caller that would see no session, which is a mistake in the options or the file."""
    if all(one.session is not None or one.visibility == "namespace" for one in callers):
        return
    reason = "a caller without a session sees nothing: give"
    if file is None:
        raise typer.BadParameter(f"{reason} --session ID, or --visibility namespace.")
    raise InvalidArgument(f'{reason} each token in {file} a session, or the visibility "namespace"')
