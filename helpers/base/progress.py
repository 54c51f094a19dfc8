"""Progress of long work: a bar in a terminal, now and then a line in a notebook or a log."""

import re
import sys
from typing import Any

from tqdm import tqdm

# A line is due when a twentieth of the time gone by has passed, within these bounds: what a run of
# days prints stays readable, and is never older than the second.
SHORTEST_SECONDS, LONGEST_SECONDS = 10.0, 600.0
LINE = re.compile(r"^(?P<what>.+): +\d+ %, (?P<done>\d+)/(?P<total>\d+) \S+, .* left\b.*$")


class Progress(tqdm):
    """Units done of those wanted, with rate and time left, both since this process began.

    Attributes:
        tokens: Tokens this process has read; shown as a rate once there are any.
    """

    tokens = 0

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a line may show, tokens or units per second among it."""
        found = super().format_dict
        elapsed = found["elapsed"]
        done = found["n"] - found["initial"]
        found["rate"] = done / elapsed if elapsed and done else None
        rate = self.tokens / elapsed if elapsed and self.tokens else found["rate"]
        unit = "tokens" if self.tokens else self.unit.strip()
        found["speed"] = f"{tqdm.format_sizeof(rate) if rate else '?'} {unit}/s"
        return found

    def skip(self, units: int) -> None:
        """Counts units an earlier run has done: they say nothing of this one's rate."""
        self.initial += units
        self.n += units
        self.last_print_n += units


class _Line(Progress):
    """The same as whole lines, for outputs that keep everything."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not (self.total or self.n):
            return  # how much there is to do is not known, and nothing is done
        shown = self.format_dict
        self.mininterval = min(max(SHORTEST_SECONDS, shown["elapsed"] / 20), LONGEST_SECONDS)
        total, seconds = self.total or self.n, (self.total or self.n) - self.n
        left = tqdm.format_interval(seconds / shown["rate"]) if shown["rate"] else "?"
        parts = [
            f"{self.desc}: {100 * self.n // max(total, 1):3d} %",
            f"{self.n}/{total} {self.unit.strip()}",
            shown["speed"],
            f"{left} left",
            *([self.postfix] if self.postfix else []),
        ]
        sys.stdout.write(", ".join(parts) + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """The last line."""
        if not self.disable:
            self.disable = True
            self.display()


def bar(total: int, what: str, unit: str, done: int = 0, scale: bool = False) -> Progress:
    """A progress bar with rate and time left.

    Args:
        total: Units of work in all; 0 where that is not known.
        what: Label.
        unit: Name of one unit.
        done: Units an earlier, interrupted run has finished.
        scale: Print thousands and millions of units as k and M, in a terminal.
    """
    options = {"total": total, "desc": what, "unit": f" {unit}", "initial": done, "smoothing": 0}
    if sys.stderr.isatty():
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{speed}, {remaining} left{postfix}]"
        return Progress(**options, ncols=96, unit_scale=scale, bar_format=form)
    return _Line(**options, mininterval=SHORTEST_SECONDS, maxinterval=1e9, miniters=1)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: ``48 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
