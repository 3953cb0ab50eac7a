"""The commands of the HTTP server: serve, and token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sessionsdb import InvalidArgument, SessionsDB, SessionsDBError
from sessionsdb.admin import tokens
from sessionsdb.admin.tokens import Rights
from sessionsdb.cli.commands.mcp import callers_of, needs_extra
from sessionsdb.cli.console import logs, output
from sessionsdb.cli.console.error_words import in_arguments
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.decorators import with_database
from sessionsdb.operations.tokens import StoredToken

if TYPE_CHECKING:
    from sessionsdb.mcp import Caller, Tokens

_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@with_database
async def serve(
    db: SessionsDB,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="The address to listen on. Every address except a loopback one needs tokens.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65_535,
            metavar="N",
            help="The port to listen on. 0 takes a free port.",
        ),
    ] = 8700,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Need a token on a loopback address, too.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="A name of this server behind a proxy. Repeat it for several.",
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy",
            metavar="ADDRESS",
            help="A proxy before this server, or a network of proxies. Its X-Forwarded-For names "
            "the caller whose rate counts. Repeat it for several.",
        ),
    ] = None,
    rate: Annotated[
        int,
        typer.Option(
            "--rate",
            min=0,
            metavar="N",
            help="Requests a second of one token, or of one address without a token, as a mean "
            "over 10 seconds. More are refused with 429. 0: no bound.",
        ),
    ] = 200,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Serve MCP too, at /mcp. Needs sessionsdb[mcp].")
    ] = False,
    mcp_session: Annotated[
        str | None,
        typer.Option(
            "--mcp-session",
            metavar="ID",
            help="With --mcp: the session of the clients, the parent of those that they spawn. A "
            "missing session is registered. Without one they can't spawn.",
        ),
    ] = None,
    mcp_tokens: Annotated[
        Path | None,
        typer.Option(
            "--mcp-tokens",
            metavar="FILE",
            help="With --mcp: a JSON file that maps each bearer token of MCP to a session, a "
            "namespace and a visibility.",
        ),
    ] = None,
) -> None:
    """Serve the sessions over HTTP, as web pages and as a JSON API.

    The calls of the API are those of the Python API, under /api/v1. On a
    loopback address a caller needs no token. It has all rights in the
    namespace of the server. Messages are answered only while a worker runs.
    Needs the extra sessionsdb[web].

    With --mcp, clients of MCP have the tokens of 'sessionsdb mcp --http': a
    file of tokens, or one token in SESSIONSDB_MCP_TOKEN. Without them a
    client sees the namespace of the server, on a loopback address only.

    Examples:

        sessionsdb serve
        sessionsdb serve --port 9000 --require-token
        sessionsdb serve --host 0.0.0.0 --allowed-host agents.example
        sessionsdb serve --mcp --mcp-session my-desktop
    """
    if not mcp and (mcp_session is not None or mcp_tokens is not None):
        raise typer.BadParameter("--mcp-session and --mcp-tokens need --mcp.")
    if mcp_session is not None and mcp_tokens is not None:
        raise typer.BadParameter(
            "--mcp-session can't be used with --mcp-tokens: each token has a session of its own."
        )
    try:
        from sessionsdb.web import Rates
        from sessionsdb.web import serve as serve_http
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sessionsdb"):
            raise
        missing = (error.name or "").partition(".")[0]
        raise SessionsDBError(
            f"the HTTP server needs the package {missing}; install it with: "
            "pip install 'sessionsdb[web]'"
        ) from error
    logs.configure(verbose=False, as_json=False)
    callers = _callers_of_mcp(mcp_session, mcp_tokens) if mcp else None
    await serve_http(
        db,
        host=host,
        port=port,
        require_token=require_token,
        allowed_hosts=allowed_host or (),
        proxies=proxy or (),
        rates=Rates(per_second=rate or None),
        mcp=callers,
        ready=lambda url: output.note(f"serving on {url}" + (f", MCP on {url}/mcp" * mcp)),
    )


def _callers_of_mcp(session: str | None, file: Path | None) -> Caller | Tokens:
    with needs_extra():
        from sessionsdb.mcp import Caller

        return callers_of(Caller(session=session, visibility="namespace"), file)


@with_database
async def token(
    db: SessionsDB,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Who uses the token, for people.")
    ] = None,
    rights: Annotated[
        Rights,
        typer.Option(
            "--rights",
            help="read: only reads. write: also sends and all other changes. admin: also deletes "
            "and imports.",
        ),
    ] = "read",
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="AGE", help="Refuse it after this time: 90m, 24h, 30d or 2w."
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the tokens of the namespace.")
    ] = False,
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="ID", help="Delete the token with this id.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Make a token for clients of 'sessionsdb serve', or list and revoke tokens.

    A token opens one namespace, the one of this command. It is shown once:
    the database keeps a digest only.

    Examples:

        sessionsdb token dashboard
        sessionsdb token ci --rights write --expires 30d
        sessionsdb token --list
        sessionsdb token --revoke 1f2e3d4c5b6a
    """
    if sum((name is not None, list_, revoke is not None)) != 1:
        raise typer.BadParameter("give the NAME of a new token, --list, or --revoke ID.")
    if revoke is not None:
        if not await tokens.revoke(db, revoke):
            raise InvalidArgument(
                f"no token {revoke} in namespace {db.namespace}; see: sessionsdb token --list"
            )
        output.print_json({"revoked": revoke}) if json_ else output.say(f"revoked: {revoke}")
    elif name is not None:
        try:
            made = await tokens.create(db, name, rights=rights, expires_in=_seconds(expires))
        except InvalidArgument as error:
            words = {"name": "NAME", "expires_in": "--expires"}
            raise typer.BadParameter(in_arguments(error, words)) from error
        if json_:
            output.print_json({"token": made.secret, **_fields(made.token)})
        else:
            output.say(made.secret)
            output.note(f"token {made.token.id} may {rights} in namespace {db.namespace}")
    else:
        await _show_all(db, json_=json_)


async def _show_all(db: SessionsDB, *, json_: bool) -> None:
    found = await tokens.list_all(db)
    if json_:
        output.print_json({"tokens": [_fields(one) for one in found]})
    elif not found:
        output.note("no tokens")
    else:
        for one in found:
            until = (
                "" if one.expires_at is None else f", until {output.format_time(one.expires_at)}"
            )
            made = output.format_time(one.created_at)
            output.say(f"{one.id}  {one.rights:5}  {one.name}  made {made}{until} UTC")


def _fields(one: StoredToken) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else value.isoformat()
        for name, value in one._asdict().items()
        if value is not None
    }


def _seconds(age: str | None) -> float | None:
    if age is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([mhdw])", age)
    if found is None:
        raise typer.BadParameter("--expires must be an age such as 90m, 24h, 30d or 2w.")
    return int(found[1]) * _SECONDS[found[2]]
