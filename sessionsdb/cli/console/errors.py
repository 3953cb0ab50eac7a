"""Report errors as one line on standard error and an exit code, never as a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from urllib.parse import unquote

import typer
from typer import Exit

from sessionsdb import SessionsDBError
from sessionsdb.cli.console.error_words import in_options, is_usage_error
from sessionsdb.cli.console.output import discard, one_line
from sessionsdb.types import DEFAULT_NAMESPACE

FAILED = 1
INTERRUPTED = 130
TRACEBACK_VARIABLE = "SESSIONSDB_TRACEBACK"

_WORD = re.compile(r"\S+")
_USER_IN_URL = re.compile(r"\w://[^:/@\s]*:")
_PASSWORD_IN_QUERY = re.compile(r"([?&](?:password|passfile|sslpassword)=)([^&\s]*)")
_WHOLE_PASSWORD_IN_QUERY = re.compile(_PASSWORD_IN_QUERY.pattern.replace(r"[^&\s]", "[^&]"))
_MIN_SECRET_LENGTH = 4
"""A shorter password is masked in URLs only: elsewhere it would match words of the message."""


@contextlib.contextmanager
def report_errors(url: str | None = None, namespace: str = DEFAULT_NAMESPACE) -> Iterator[None]:
    """Turn an exception of a command into its message and exit code.

    An argument that is wrong in any database is a usage error, and all else a failure.
    The password of ``url`` is masked in the message, wherever the driver puts it.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (KeyboardInterrupt, EOFError) as error:
        raise _print_error("interrupted", INTERRUPTED) from error
    except BrokenPipeError as error:
        discard(sys.stdout)
        raise _print_error("standard output was closed before everything was written") from error
    except Exception as error:
        if isinstance(error, Exit) or hasattr(
            error, "exit_code"
        ):  # a usage error, which typer prints
            raise
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if isinstance(error, OSError):
            discard(sys.stdout)
        message = without_password(_message(error, url, namespace), url)
        if is_usage_error(error):
            raise typer.BadParameter(message) from error
        raise _print_error(message) from error


def without_password(text: str, url: str | None = None) -> str:
    """Return ``text`` with ``***`` for the password of every URL in it.

    The password of ``url`` is replaced everywhere in the text.
    """
    text = _WORD.sub(_mask_word, text)
    text = _PASSWORD_IN_QUERY.sub(r"\1***", text)
    for secret in _passwords(url or ""):
        text = text.replace(secret, "***")
    return text


def _mask_word(match: re.Match[str]) -> str:
    word = match[0]
    begin, end = _password_in(word)
    return word if begin == end else f"{word[:begin]}***{word[end:]}"


def _password_in(word: str) -> tuple[int, int]:
    """Return where the password of the URL in ``word`` begins and ends.

    It ends at the last ``@``, because a password may hold one that is not escaped.
    """
    user = _USER_IN_URL.search(word)
    end = word.rfind("@")
    return (user.end(), end) if user is not None and user.end() < end else (0, 0)


def _passwords(url: str) -> list[str]:
    # A password may hold blanks, a question mark, and an "@".
    places = (*_WORD.findall(url), url, url.partition("?")[0])
    found = [place[slice(*_password_in(place))] for place in places]
    found += [match[2] for match in _PASSWORD_IN_QUERY.finditer(url)]
    found += [match[2] for match in _WHOLE_PASSWORD_IN_QUERY.finditer(url)]
    forms = {form for secret in found for form in (secret, unquote(secret))}
    return sorted(
        (form for form in forms if len(form) >= _MIN_SECRET_LENGTH), key=len, reverse=True
    )


def _message(error: Exception, url: str | None, namespace: str) -> str:
    if isinstance(error, SessionsDBError):
        return in_options(error, url, namespace)
    if isinstance(error, ImportError):
        return f"a package is missing: {error}; install sessionsdb with its dependencies"
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return (
        f"unexpected {type(error).__name__}: {error} "
        f"(set {TRACEBACK_VARIABLE}=1 to get the traceback)"
    )


def _print_error(message: str, code: int = FAILED) -> Exit:
    with contextlib.suppress(OSError):
        typer.echo(f"sessionsdb: {one_line(message)}", err=True)
    return Exit(code)
