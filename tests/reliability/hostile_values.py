"""Values for fuzzing: values that callers mean, and values that no caller should pass.

Many hostile values cannot be printed, compared or copied. So hypothesis draws their names
(``Made``), and the value is made at the moment of the call. A failing example can then be read.
"""

from __future__ import annotations

import asyncio
import decimal
import enum
import fractions
import uuid
from collections import OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.support import messages


class Hostility(Exception):
    """The error of a hostile value that is used. It must never leave the package."""


class Made(NamedTuple):
    """A value by name, made for the call."""

    name: str
    make: Callable[[], Any]

    def __repr__(self) -> str:
        return f"<{self.name}>"


def made(value: Any) -> Any:
    """The value itself, also inside of containers."""
    if isinstance(value, Made):
        return value.make()
    if type(value) is list:
        return [made(item) for item in value]
    if type(value) is dict:
        return {key: made(item) for key, item in value.items()}
    return value


# ---- values that fail when they are looked at ----------------------------------------------------

_TOUCHED = """
    __repr__ __str__ __format__ __bytes__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__
    __bool__ __len__ __iter__ __contains__ __getitem__ __reversed__ __int__ __float__ __index__
    __complex__ __add__ __radd__ __sub__ __rsub__ __mul__ __call__ __reduce_ex__ __copy__
    __deepcopy__ __aiter__ __await__ __enter__ __exit__ encode isprintable isascii strip split
    splitlines casefold lower startswith replace format join keys values items get copy pop
    append index count bit_length is_integer as_integer_ratio isoformat astimezone utcoffset
    delay
"""


def _fails(*_arguments: Any, **_named: Any) -> Any:
    raise Hostility("do not touch me")


def failing(base: type) -> type[Any]:
    """A subclass of ``base`` whose methods all fail."""
    names = [name for name in _TOUCHED.split() if base is object or hasattr(base, name)]
    return type(f"Failing{base.__name__.title()}", (base,), dict.fromkeys(names, _fails))


Failing = failing(object)
FailingText = failing(str)
FailingBytes = failing(bytes)
FailingWhole = failing(int)
FailingFloat = failing(float)
FailingDict = failing(dict)
FailingList = failing(list)
FailingTuple = failing(tuple)
FailingTime = failing(datetime)


class Text(str):
    """A subclass of ``str``. SQL drivers and JSON may check the exact type."""

    __slots__ = ()


class Whole(int):
    """A subclass of ``int``."""


class Colour(str, enum.Enum):  # noqa: UP042  the kind whose str() is not its value
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


class Pair(NamedTuple):
    role: str
    content: str


class LyingDict(dict[str, Any]):
    """A dictionary whose length is 0, and whose ``items`` yields one."""

    def __len__(self) -> int:
        return 0

    def items(self) -> Any:
        return [("role", "user")]


class LyingText(str):
    """A text whose length and ``isprintable`` are false."""

    __slots__ = ()

    def __len__(self) -> int:
        return 1

    def isprintable(self) -> bool:
        return True


class NoOffset(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, _moment: datetime | None) -> None:
        return None


class FailingZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta:
        raise Hostility("no zone")


class SelfDestruct:
    """A sequence that fails when it is read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        if index:
            raise Hostility("no more")
        return "first"


def _breaking() -> Iterator[str]:
    yield "search"
    raise Hostility("the generator broke")


def _round_list() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _round_dict() -> dict[str, Any]:
    ring: dict[str, Any] = {"role": "user"}
    ring["content"] = [ring]
    return ring


def _deep(levels: int, *, of: type = list) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value] if of is list else {"content": value}
    return value


async def _never_awaited() -> None:
    """A coroutine in place of a value."""


def _coroutine() -> Any:
    work = _never_awaited()
    work.close()  # without it Python warns
    return work


_MAKERS: dict[str, Callable[[], Any]] = {
    "an object": object,
    "an object that fails": Failing,
    "a class": lambda: dict,
    "a function": lambda: _fails,
    "a module": lambda: asyncio,
    "a coroutine": _coroutine,
    "not implemented": lambda: NotImplemented,
    "ellipsis": lambda: ...,
    "an exception": lambda: ValueError("x"),
    "a lambda": lambda: lambda: None,
    "text that fails": lambda: FailingText("chat"),
    "text that lies": lambda: LyingText("\x00" * 600),
    "text of a subclass": lambda: Text("chat"),
    "text of an enum": lambda: Colour.RED,
    "text of UserString": lambda: UserString("chat"),
    "bytes": lambda: b"chat",
    "bytes that fail": lambda: FailingBytes(b"chat"),
    "bytearray": lambda: bytearray(b"chat"),
    "memoryview": lambda: memoryview(b"chat"),
    "a path": lambda: PurePosixPath("/etc/passwd"),
    "a uuid": lambda: uuid.UUID(int=7),
    "a whole number that fails": lambda: FailingWhole(3),
    "a whole number of a subclass": lambda: Whole(3),
    "a whole number of an enum": lambda: Number.TWO,
    "a float that fails": lambda: FailingFloat(0.01),
    "a decimal": lambda: decimal.Decimal("0.01"),
    "a decimal NaN": lambda: decimal.Decimal("sNaN"),
    "a fraction": lambda: fractions.Fraction(1, 100),
    "a complex number": lambda: 1j,
    "10**5000": lambda: 10**5000,
    "-10**5000": lambda: -(10**5000),
    "a dict that fails": lambda: FailingDict(role="user", content="x"),
    "a dict that lies": lambda: LyingDict(role="user", content="x"),
    "a dict of OrderedDict": lambda: OrderedDict(role="user", content="x"),
    "a dict of defaultdict": lambda: defaultdict(list, role="user", content="x"),
    "a dict of UserDict": lambda: UserDict(role="user", content="x"),
    "a dict with keys of all kinds": lambda: {1: "a", None: "b", (): "c", b"d": "d"},
    "a dict of failing values": lambda: {"role": FailingText("user"), "content": Failing()},
    "a list that fails": lambda: FailingList(["search"]),
    "a list of UserList": lambda: UserList(["search"]),
    "a list of failing values": lambda: [Failing(), FailingText("search"), FailingDict()],
    "a tuple that fails": lambda: FailingTuple(["search"]),
    "a named tuple": lambda: Pair("user", "x"),
    "a set": lambda: {"search"},
    "a frozenset": lambda: frozenset({"search"}),
    "a deque": lambda: deque(["search"]),
    "a range": lambda: range(3),
    "a generator": lambda: (name for name in ("search", "read")),
    "a generator that breaks": _breaking,
    "a sequence that breaks": SelfDestruct,
    "a list that holds itself": _round_list,
    "a dict that holds itself": _round_dict,
    "a list 200 deep": lambda: _deep(200),
    "a dict 300 deep": lambda: _deep(300, of=dict),
    "a list 900 deep": lambda: _deep(900),
    "a list 100,000 deep": lambda: _deep(100_000),
    "a dict 100,000 deep": lambda: _deep(100_000, of=dict),
    "200,000 characters": lambda: "é" * 200_000,
    "2 million characters": lambda: "x" * 2_000_000,
    "20,000 names": lambda: [f"tool-{n}" for n in range(20_000)],
    "the first moment": lambda: datetime.min,  # noqa: DTZ901  without a zone on purpose
    "the first moment, in UTC": lambda: datetime.min.replace(tzinfo=UTC),
    "the first moment, east": lambda: datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    "the last moment": lambda: datetime.max,  # noqa: DTZ901  without a zone on purpose
    "the last moment, in UTC": lambda: datetime.max.replace(tzinfo=UTC),
    "the last moment, west": lambda: datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    "a moment of no offset": lambda: datetime(2026, 1, 31, tzinfo=NoOffset()),
    "a moment of a failing zone": lambda: datetime(2026, 1, 31, tzinfo=FailingZone()),
    "a moment that fails": lambda: FailingTime(2026, 1, 31, tzinfo=UTC),
    "a moment without a zone": lambda: datetime.fromisoformat("2026-01-31"),
    "a day": lambda: date(2026, 1, 31),
    "a span": lambda: timedelta(seconds=1),
}

SPECIAL = [Made(name, make) for name, make in _MAKERS.items()]

# ---- texts ---------------------------------------------------------------------------------------

SQL = (
    "'; DROP TABLE sessions; --",
    "' OR '1'='1",
    '" OR 1=1 --',
    "x') ON CONFLICT DO NOTHING; DELETE FROM inbox; --",
    "\\'; SELECT pg_sleep(9); --",
    "%",
    "_",
    "%s",
    ":id",
    "$1",
    "?",
    "{0} {name!r}",
    "%(id)s",
    "NULL",
    "E'\\x00'",
    "$$body$$",
)
PATHS = ("../../etc/passwd", "/", ".", "..", "~", "C:\\nul", "a/b", "file:///x", "-", "--help")
MARKS = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066hidden\u2069",
    "\ufeffBOM",
    "a\r\nb\rc\nd",
    "\x7f\x08\x08",
    "\u2028\u2029\x85\x0b\x0c",
    "[bold]markup[/bold] [/]",
    ":smile: {x}",
    "\U0010ffff\ufffe\uffff",
    "e\u0301👩‍👩‍👧",
    " \t ",
    "",
)
UNSTORABLE = ("\x00", "a\x00b", "\ud800", "\udfff", "\ud83d\ude00", "caf\udce9")
LONG = ("🌳" * 512, *("x" * n for n in (63, 64, 65, 511, 512, 513, 1_025, 4_096, 4_097)))

storable_texts = st.sampled_from(SQL + PATHS + MARKS) | st.text(max_size=12)
texts = storable_texts | st.sampled_from(UNSTORABLE + LONG) | messages.texts

# ---- numbers -------------------------------------------------------------------------------------

_EDGES = [2**n + d for n in (15, 31, 32, 53, 62, 63, 64, 127) for d in (-1, 0, 1)]
whole_numbers = (
    st.integers(-3, 5)
    | st.sampled_from([*_EDGES, *(-edge for edge in _EDGES), 10**18, 10**400, -(10**400)])
    | st.integers()
)
_ODD = (0.0, -0.0, 5e-324, 1e-9, 0.001, 0.5, 1e12, 1e15, 1.7e308, -1.0)
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
floats = st.floats() | st.sampled_from(_ODD + NO_NUMBERS)

# ---- anything ------------------------------------------------------------------------------------

special = st.sampled_from(SPECIAL)
scalars = st.none() | st.booleans() | whole_numbers | floats | texts | st.binary(max_size=8)
moments = st.datetimes(timezones=st.none() | st.timezones()) | st.sampled_from(
    [one for one in SPECIAL if "moment" in one.name]
)
json_values = st.recursive(
    st.none() | st.booleans() | whole_numbers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
anything = special | scalars | moments | json_values | st.lists(scalars | special, max_size=3)
