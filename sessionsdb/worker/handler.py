"""The handler: the coroutine function of a user that runs a turn."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import Message
from sessionsdb.types import SessionMessage
from sessionsdb.untrusted_values import short_repr
from sessionsdb.worker.reply import Reply
from sessionsdb.worker.signatures import signature_of
from sessionsdb.worker.turn import Turn

HandlerResult = str | Message | list[Message] | list[Message | SessionMessage] | Reply | None
Handler = Callable[[Turn], Awaitable[HandlerResult]]
"""The agent: an async function that gets a turn and returns its reply.

A ``str`` is one assistant message, a ``dict`` or ``list`` of dicts are messages as they are, and
``None`` is no reply. An exception is a failed attempt. A handler may run more than once for the
same messages, so its effects outside of the database happen at least once. Its reply is committed
exactly once.
"""


def handler_name(handler: Handler) -> str:
    """Return the name of a handler for logs and errors."""
    name = getattr(handler, "__qualname__", None)
    return name if type(name) is str else type(handler).__name__


def checked_handler(handler: Any) -> Handler:
    """Return the handler if it is an async function of one argument, as far as it tells.

    A wrong one would fail every turn, and so kill the first message of every session. Raises
    ``InvalidArgument``.
    """
    if not callable(handler) or inspect.isclass(handler):
        raise InvalidArgument(
            f"handler must be an async function that takes a turn, not {short_repr(handler)}"
        )
    name = handler_name(handler)
    if inspect.isasyncgenfunction(handler):
        raise InvalidArgument(
            f"the handler {name} is an async generator: replace `yield` with one `return` of the "
            "whole reply"
        )
    if _is_certainly_not_async(handler):
        raise InvalidArgument(
            f"the handler {name} is not async: define it with `async def`, and let it return its "
            "reply"
        )
    try:
        signature_of(handler).bind(None)
    except TypeError as error:
        raise InvalidArgument(
            f"the handler {name} can't be called with one argument, the turn: {error}; define it "
            f"as `async def {name.rpartition('.')[2]}(turn)`"
        ) from None
    except ValueError:  # a function of an extension module, which tells no parameters
        pass
    checked: Handler = handler
    return checked


def require_awaitable(handler: Handler, result: object) -> Awaitable[Any]:
    """Return the result of a handler's call. Raises ``BrokenHandler`` if it can't be awaited."""
    if inspect.isawaitable(result):
        return result
    raise BrokenHandler(
        f"the handler {handler_name(handler)} must be async: it returned "
        f"{type(result).__name__}, which can't be awaited"
    )


class BrokenHandler(InvalidArgument):
    """The handler is no async function. It would fail every turn, so the worker stops."""


def _is_certainly_not_async(handler: Any) -> bool:
    """Whether a call of the handler can't return an awaitable.

    A plain function may return the awaitable of an async one. So it is refused only if nothing says
    so: it is not marked, wraps no async function, and is annotated with no awaitable.
    """
    function = getattr(handler, "func", handler)  # of a partial
    if not inspect.isroutine(function):
        function = getattr(type(function), "__call__", None)  # noqa: B004  the function is wanted
    function = inspect.unwrap(function) if callable(function) else function
    if any(map(_is_marked_async, (handler, function))):
        return False
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return False  # compiled: it does not tell
    if function.__name__ == "<lambda>":
        return False
    returned = str(signature_of(function).return_annotation)
    return not any(word in returned for word in ("Awaitable", "Coroutine", "Future", "Task"))


def _is_marked_async(function: Any) -> bool:
    return (
        inspect.iscoroutinefunction(function)
        or getattr(function, "_is_coroutine", None) is not None
    )
