"""Parsing of the arguments that a model sends: the result is an input or an error for the model."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from sessionsdb.tools.inputs import Input
from sessionsdb.tools.rendering import replace_surrogates
from sessionsdb.tools.schemas import plain_schema

MAX_SHOWN_ERRORS = 3
MAX_ERROR_CHARACTERS = 300

InputT = TypeVar("InputT", bound=Input)


class InvalidInput(Exception):
    """The arguments are wrong. The message tells the model which, and why."""


def parse_input(model: type[InputT], tool: str, arguments: Any) -> InputT:
    """Return the arguments of a call of ``tool`` as its input. Raises ``InvalidInput``."""
    arguments = _unpack(arguments, _schema(model))
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


@cache
def _schema(model: type[Input]) -> dict[str, Any]:
    return plain_schema(model)


def _unpack(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value with each list or object in it that a client passed as its JSON text.

    Only where the schema wants a list or an object: a text stays a text.
    """
    wanted = _CONTAINERS.get(schema.get("type", ""))
    if wanted is None:
        return value
    if type(value) is str:
        with suppress(ValueError, RecursionError):
            parsed = json.loads(value)
            if type(parsed) is wanted:
                value = parsed
    if type(value) is list:
        return [_unpack(item, schema.get("items", {})) for item in value]
    if type(value) is dict:
        properties = schema.get("properties", {})
        return {key: _unpack(item, properties.get(key, {})) for key, item in value.items()}
    return value


_CONTAINERS: dict[str, type] = {"array": list, "object": dict}


def _validate(model: type[InputT], tool: str, arguments: dict[str, Any]) -> InputT:
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
