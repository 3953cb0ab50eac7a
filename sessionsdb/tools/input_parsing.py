"""Parsing of the arguments that a model sends: the result is an input or an error for the model."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from sessionsdb.tools.inputs import Input
from sessionsdb.tools.rendering import replace_surrogates

MAX_SHOWN_ERRORS = 3
MAX_ERROR_CHARACTERS = 300

I = TypeVar("I", bound=Input)  # noqa: E741


class InvalidInput(Exception):
    """The arguments are wrong. The message tells the model which, and why."""


def parse_input(model: type[I], tool: str, arguments: Any) -> I:
    """Return the arguments of a call of ``tool`` as its input. Raises ``InvalidInput``."""
    if not isinstance(arguments, dict):
        raise InvalidInput(
            f"Invalid {tool} input: it must be a JSON object, not {type(arguments).__name__}"
        )
    try:
        return _validate(model, tool, arguments)
    except InvalidInput:
        raise
    except Exception as error:
        # A host can pass values that are not parsed JSON, and their methods can fail.
        raise InvalidInput(
            f"Invalid {tool} input: it can't be read: {type(error).__name__}"
        ) from error


def _validate(model: type[I], tool: str, arguments: dict[str, Any]) -> I:
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in model.required_text:
        if given.get(name, "") == "":
            raise InvalidInput(f"{tool} requires a non-empty `{name}`")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidInput(f"Invalid {tool} input: {_format_errors(error)}") from None


def _format_errors(error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for one in errors[:MAX_SHOWN_ERRORS]:
        location = ".".join(str(part) for part in one["loc"]) or "input"
        lines.append(f"{location}: {one['msg']}"[:MAX_ERROR_CHARACTERS])
    if len(errors) > MAX_SHOWN_ERRORS:
        lines.append(f"and {len(errors) - MAX_SHOWN_ERRORS} more")
    return replace_surrogates("; ".join(lines))
