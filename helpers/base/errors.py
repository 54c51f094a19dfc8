"""Errors a user sees: one line that names what is wrong and what would be right."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LINE_LIMIT = 4000  # characters of an error line; a value quoted in it may be a whole document


class UserError(ValueError):
    """A mistake in a parameter or a file, told in one line; notebooks show the line alone.

    Names and values come from outside: what is not printable in them, line breaks and terminal
    codes and lone surrogates, is written as Python escapes, and the middle of a long line is cut.
    """

    def __init__(self, message: str = "") -> None:
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if len(line) > LINE_LIMIT:
            line = f"{line[: LINE_LIMIT // 2]} … {line[-LINE_LIMIT // 2 :]}"
        super().__init__(line)

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]


class Diverged(UserError):
    """A training whose loss or weights are no longer finite."""


class Preempted(UserError):
    """A run that was told to end, and saved what it had; scripts exit with status 75."""


STOPS = (signal.SIGINT, signal.SIGTERM)  # tell a run to end
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Around libraries with exceptions of their own: what they raise is one line after `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{what} ({line})") from None


def did_you_mean(name: str, known: Mapping[str, object] | list[str]) -> str:
    """The end of an error line: the closest known name, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a script's main function; a :class:`UserError` becomes one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # where the locale's encoding lacks a character
        stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(PREEMPTED if isinstance(error, Preempted) else 2)
