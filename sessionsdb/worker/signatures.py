"""The parameters of functions that users give, without the values of their annotations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function. Its annotations may be texts.

    From Python 3.14 on an annotation is computed when it is read. That fails for a name that only a
    type checker imports, as below ``if TYPE_CHECKING``. Raises ``TypeError`` and ``ValueError`` as
    ``inspect.signature`` does.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.STRING)
    return inspect.signature(function)
