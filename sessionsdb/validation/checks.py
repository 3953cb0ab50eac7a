"""The parts that the checks of this package share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from sessionsdb.errors import InvalidArgument
from sessionsdb.untrusted_values import (
    is_instance,
    is_storable,
    plain_text,
    type_name,
    with_article,
)
from sessionsdb.validation.bounds import MAX_METADATA_DEPTH


def as_text(value: Any, field: str, wanted: str) -> str:
    if type(value) is str:
        return value
    if not is_instance(value, str):
        raise InvalidArgument(f"{field} must be {wanted}, not {type_name(value)}")
    return plain_text(value)


def optional_text(value: Any, field: str, maximum: int) -> str | None:
    return (
        None
        if value is None
        else bounded_text(as_text(value, field, "a string or None"), field, maximum)
    )


def bounded_list(value: Any, field: str, maximum: int, *, of: str = "names") -> list[Any]:
    if is_instance(value, str, bytes, dict) or not is_instance(value, Iterable):
        raise InvalidArgument(f"{field} must be a list of {of}, not {type_name(value)}")
    try:
        items = list(islice(value, maximum + 1))  # an iterator may never end
    except Exception as error:
        raise InvalidArgument(f"{field} can't be read: its {type_name(error)}") from error
    if len(items) > maximum:
        raise InvalidArgument(f"{field} must have at most {maximum} {of}")
    return items


def json_copy(value: Any, depth: int) -> Any:
    """Copy a JSON value of at most ``depth`` nested containers."""
    if value is None or type(value) is bool:
        return value
    if is_instance(value, str):
        return plain_text(value)
    if is_instance(value, int):
        return int.__int__(value)
    if is_instance(value, float):
        number = float.__float__(value)
        if not math.isfinite(number):
            raise InvalidArgument(f"metadata is not JSON, which has no number {number}")
        return number
    if is_instance(value, dict, list) and not depth:
        raise InvalidArgument(
            f"metadata nests deeper than {MAX_METADATA_DEPTH} levels, or holds itself"
        )
    if is_instance(value, dict):
        copy = {}
        for key, item in value.items():
            if not is_instance(key, str):
                raise InvalidArgument(
                    f"metadata is not JSON: it has a key of type {type_name(key)}, "
                    "keys must be strings"
                )
            copy[plain_text(key)] = json_copy(item, depth - 1)
        return copy
    if is_instance(value, list):
        return [json_copy(item, depth - 1) for item in value]
    raise InvalidArgument(f"metadata is not JSON: it holds {with_article(type_name(value))}")


def storable_text(value: str, field: str) -> str:
    if not is_storable(value):
        raise InvalidArgument(
            f"{field} holds a NUL or a lone surrogate, which databases can't keep: {value[:40]!r}"
        )
    return value


def bounded_text(value: str, field: str, maximum: int) -> str:
    if len(value) > maximum:
        raise InvalidArgument(
            f"{field} {value[:40]!r}… has {len(value)} characters, the limit is {maximum}"
        )
    return storable_text(value, field)
