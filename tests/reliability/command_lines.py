"""Command lines for fuzzing, drawn from the program's own commands, arguments and options."""

from __future__ import annotations

import inspect
import json
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from hypothesis import strategies as st

from sessionsdb.cli.app import app
from tests.reliability.bystanders import FIELDS
from tests.reliability.field import IDS
from tests.reliability.hostile_values import json_values, texts
from tests.support import messages

INPUT_FILE = "input.jsonl"
"""The path of a file with the bytes of ``Line.input``, in the working folder of a command."""

SPECIAL_FILE = "special.svg"
"""A path in the same folder that does not exist."""

LEFT_OUT = {
    ("mcp", "http"): "serves for ever; its addresses are tried in a process of its own",
    ("worker", "prometheus_port"): "metrics are collected once in a process; tried in its own",
    ("worker", "prometheus_host"): "the same",
}
"""The options that are not drawn, with the reason."""

ENDLESS = {
    "chat": "waits for an agent: tests/test_cli_chat.py",
    "follow": "waits for events: tests/test_cli_follow.py",
    "serve": "serves for ever: tests/test_serve_command.py",
}
"""Commands that are not drawn, because they do not end by themselves."""

ALWAYS: dict[str, list[str]] = {
    "demo": ["unexpected"],  # else it tells its whole story, and takes nothing but its name
    "top": ["--once"],
    "worker": ["--until-idle", "--max-attempts", "1", "--poll", "0.02"],
}
"""The options that make a command end."""

WIDE = {
    "purge": "deletes by age, whoever's it is",
    "worker": "answers what waits, whoever's it is",
}
"""Commands that change every session of a namespace."""


class Line(NamedTuple):
    """One call of the program."""

    command: str
    arguments: list[str]
    input: bytes

    @property
    def everywhere(self) -> bool:
        """Whether the command works on every namespace."""
        return "--all-namespaces" in self.arguments


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    name: str
    kind: Any
    """The type in the signature of the command."""
    option: str | None
    """The name on the command line. ``None`` for an argument."""
    is_flag: bool
    required: bool


def commands() -> dict[str, list[Parameter]]:
    """Every command of the program, with its arguments and options."""
    # Typed as Any: typer ships its command classes in a private module.
    program: Any = typer.main.get_command(app)
    return {
        name: [
            _parameter(one, inspect.signature(command.callback))
            for one in command.params
            if one.name != "help"
        ]
        for name, command in program.commands.items()
        if name not in ENDLESS
    }


def _parameter(one: Any, signature: inspect.Signature) -> Parameter:
    assert one.param_type_name in ("argument", "option"), one
    is_option = one.param_type_name == "option"
    return Parameter(
        one.name,
        _bare(signature.parameters[one.name].annotation),
        max(one.opts, key=len) if is_option else None,
        is_option and one.is_flag,
        one.required,
    )


def _bare(annotation: Any) -> Any:
    """The type without ``Annotated``, ``None`` and ``list``."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        [kind] = [one for one in get_args(annotation) if one is not NoneType]
        return _bare(kind)
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is list else annotation


# ---- values of arguments -------------------------------------------------------------------------


def _as_argument(text: str) -> str:
    """The text in the form that the system passes: it ends an argument at a NUL, and Python decodes
    bytes that are not UTF-8 to one kind of lone surrogates."""
    return text.replace("\x00", "").encode(errors="surrogatepass").decode(errors="surrogateescape")


arguments = texts.map(_as_argument)


def _mostly(
    likely: st.SearchStrategy[str], other: st.SearchStrategy[str] = arguments
) -> st.SearchStrategy[str]:
    """Draw from ``likely`` in two of three cases."""
    return st.sampled_from((likely, likely, other)).flatmap(lambda strategy: strategy)


_NUMBERS = (
    *("0", "1", "2", "7", "-1", "+3", " 4 ", "1_000", "0x10", "010", "1.5", "1e3", "٣", "³", "½"),
    *("nan", "inf", "-inf", "1e400", "-0", "1e-400", "0.05", "", "true", "null", "1\x1b[31m"),
    *("9" * 19, "9" * 25, "9" * 5_000, str(2**31), str(2**63), str(-(2**63) - 1)),
)
numbers = _mostly(st.sampled_from(_NUMBERS) | st.integers(-3, 100).map(str))

times = st.sampled_from(
    (
        *("2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00:00+0200", "2026-01-31 12:00:00"),
        *("0001-01-01T00:00:00+1400", "9999-12-31T23:59:59-1200", "0000-00-00", "2026-02-30"),
        *("7d", "24h", "0m", "999999w", "-1d", "1e3d", "٣d", "999999999d", " 7d ", "7d\n"),
        *("9999-12-31T23:59:59.999999+23:59", "0001-01-01", "2026-W05-6", "20260131", "infinity"),
    )
)

# No number here waits longer than a moment.
waits = st.sampled_from(("0", "0.01", "0.05", "-1", "nan", "-inf", "", "x", "1e-400", "-0"))


def _inside(text: str) -> str:
    """A path inside of the working folder. Other paths are not drawn: a command writes to its path,
    and the user of the tests may be allowed to write anywhere."""
    return text.lstrip("/~").replace("..", "__")[:300]


_PATHS = (
    *("out.jsonl", "out.svg", "out.png", "new/out.svg", ".", "", "-", SPECIAL_FILE, "a.png/"),
    *("nowhere/at/all.png", INPUT_FILE, f"{INPUT_FILE}/below", "x" * 300, "tokens.json", " "),
    *("caf\udce9.png", "a\nb.svg", "\x1b[2J.png", "./x.svg"),
)
paths = _mostly(st.sampled_from(_PATHS), arguments.map(_inside))

urls = _mostly(
    st.sampled_from(
        (
            *(
                "sqlite://",
                "sqlite:///:memory:",
                "sqlite:///other.db",
                "sqlite:///",
                "sqlite:/x",
                "",
            ),
            *(
                "sqlite:///.",
                f"sqlite:///{INPUT_FILE}",
                "sqlite:///no/such/folder.db",
                "sqlite://host/x",
            ),
            *(
                "sqlite:///x.db?timeout=abc",
                "sqlite:///x.db?mode=ro&uri=true",
                "sqlite:///x.db?a=b",
            ),
            *("sqlite:///x.db?cached_statements=-1", "sqlite:///x.db?isolation_level=NONE"),
            *("sqlite:///x.db?check_same_thread=maybe", "sqlite:///x.db?detect_types=x"),
            *("sqlite:///x.db?isolation_level=a&isolation_level=b", "sqlite:///caf\udce9.db"),
            *("sqlite:///file:x.db?uri=true&mode=memory", "sqlite:///file:x.db?uri=true&vfs=none"),
            *("sqlite:///file::memory:?uri=true&cache=shared", "sqlite:///file:x.db?uri=true"),
            *(
                "postgresql://127.0.0.1:1/x",
                "postgresql://127.0.0.1:99999/x",
                "postgresql://[::1/x",
            ),
            *(
                "postgresql://u:p@127.0.0.1:1/x?host=/nowhere",
                "postgresql://127.0.0.1:1/x?ssl=maybe",
            ),
            *("postgresql://127.0.0.1:1/x?port=abc&host=127.0.0.1", "postgresql://127.0.0.1:-1/x"),
            *("postgresql://127.0.0.1:1/caf\udce9", "postgresql://u\udce9@127.0.0.1:1/x"),
            *(
                "postgresql://127.0.0.1:1/x?prepared_statement_cache_size=x",
                "postgres://127.0.0.1:1",
            ),
            *(
                "postgresql://127.0.0.1:1/x?target_session_attrs=none",
                "mysql://x",
                "http://x",
                "://",
            ),
            *(
                "sqlite+pysqlite:///x.db",
                "postgresql+psycopg://127.0.0.1:1/x",
                "sqlite+x:///y",
                "x:y",
            ),
        )
    ),
    arguments.filter(lambda text: "sqlite" not in text and "postgres" not in text),
)

handlers = _mostly(
    st.sampled_from(
        (
            *(
                "sessionsdb.handlers:echo",
                "sessionsdb.handlers:nobody",
                "sessionsdb.handlers:__name__",
            ),
            *(
                "sessionsdb.handlers:echo.__class__",
                "json:dumps",
                "json:JSONDecoder",
                "os.path:join",
            ),
            *(":", "x:", ":x", "..:x", ".a:b", "a..b:c", ".:x", "no_such_module:x", "caf\udce9:x"),
            *(
                "json:",
                "json:.",
                "json:..x",
                "a b:c",
                "x\ny:z",
                "\x1b[2J:x",
                "json.nothing:x",
                "1:1",
            ),
        )
    ),
    arguments.filter(lambda text: ":" not in text),
)

ids = _mostly(st.sampled_from(IDS))
json_texts = (
    json_values.map(json.dumps)
    | st.sampled_from(
        (
            *("{}", "[]", "null", '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5_000 + "}"),
            *('{"a": "\\ud800"}', '{"a": 1, "a": 2}', '{"a": "\\u0000"}', "\ufeff{}", "{'a': 1}"),
            *('{"a": ' * 300 + "1" + "}" * 300, "[" * 100_000, '{"a": ' * 60 + "1" + "}" * 60),
        )
    )
    | arguments
)

# Valid namespaces begin like fields: see bystanders.
namespaces = st.sampled_from(
    (f"{FIELDS}other", f"{FIELDS}\x1b[2J", FIELDS + "x" * 60, FIELDS + "\udce9", "")
)

BY_NAME: dict[str, st.SearchStrategy[str]] = {
    "id": ids,
    "parent": ids,
    "root": ids,
    "namespace": namespaces,
    "for_namespace": namespaces,
    "after": ids | numbers,
    "session": ids,
    "file": paths,
    "url": urls,
    "handler": handlers,
    "metadata": json_texts,
    "since": _mostly(times),
    "active_since": _mostly(times),
    "finished_before": _mostly(times),
    "ended_before": _mostly(times),
    "messages_before": _mostly(times),
    "wait": waits,
    "max_wait": waits,
    "text": _mostly(arguments, st.just("-")),
    "prompt": _mostly(arguments, st.just("-")),
}
"""The likely values of an argument or an option, by name. Others are drawn by type."""


def values(parameter: Parameter) -> st.SearchStrategy[str]:
    if (named := BY_NAME.get(parameter.name)) is not None:
        return named
    if get_origin(parameter.kind) is Literal:
        return _mostly(st.sampled_from(get_args(parameter.kind)))
    by_kind = {int: numbers, float: numbers, Path: paths, datetime: _mostly(times), str: arguments}
    assert parameter.kind in by_kind, f"say what is likely for {parameter}"
    return by_kind[parameter.kind]


# ---- standard input ------------------------------------------------------------------------------


def _session_line(drawn: tuple[Any, Any]) -> bytes:
    return json.dumps({"session_id": drawn[0], "messages": drawn[1]}).encode()


_lines = st.lists(
    st.tuples(ids | json_values, st.lists(messages.messages, max_size=2) | json_values).map(
        _session_line
    )
    | st.sampled_from(
        (
            *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"session_id": "a"}'),
            *(b'{"session_id": "a", "messages": NaN}', b"[" * 100_000, b"9" * 5_000, b"\x00"),
            b'{"session_id": "a", "messages": [{"n": ' + b"9" * 5_000 + b"}]}",
            b'{"session_id": "deep", "messages": [' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"]}",
            b'{"session_id": "\\ud800", "messages": []}',
            b'{"session_id": "\x1b[2J", "messages": [5]}',
            b'{"session_id": "x", "messages": [{"a": "' + b"x" * 1_100_000 + b'"}]}',
        )
    )
    | st.binary(max_size=40),
    max_size=4,
)
inputs = st.one_of(
    st.tuples(_lines, st.sampled_from((b"\n", b"\r\n", b"\r", b"\n\n"))).map(
        lambda drawn: drawn[1].join(drawn[0])
    ),
    st.sampled_from((b"", b"\n", b"hello\r\n", b"\xef\xbb\xbfhello", b"y\n", b"\x00", b"\xff")),
    st.binary(max_size=60),
)


# ---- a line --------------------------------------------------------------------------------------


@st.composite
def lines(draw: st.DrawFn, name: str) -> Line:
    """A command line: the arguments, some of the options, and sometimes an unknown one."""
    parameters = [one for one in commands()[name] if (name, one.name) not in LEFT_OUT]
    positional = [
        draw(values(one))
        for one in parameters
        if one.option is None and (one.required or draw(st.booleans()))
    ]
    given: list[str] = []
    options = [one for one in parameters if one.option is not None]
    for one in draw(st.lists(st.sampled_from(options), max_size=3)) if options else ():
        given += [str(one.option)] if one.is_flag else [str(one.option), draw(values(one))]
    if draw(st.integers(0, 9)) == 0:
        positional.append(draw(arguments))
    # After ``--`` a text that begins with a dash is an argument too.
    line = [*given, *ALWAYS.get(name, ()), *draw(st.sampled_from(([], ["--"]))), *positional]
    return Line(name, line, draw(inputs))
