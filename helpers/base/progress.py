"""Progress of long work: a bar in a terminal, lines in a notebook or a log, a file for `status`."""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from helpers.base import files
from helpers.base.errors import UserError

# A line is due when a twentieth of the time gone by has passed, within these bounds: what a run of
# days prints stays readable, and is never older than the second.
SHORTEST_SECONDS, LONGEST_SECONDS = 10.0, 600.0
FILE = "SMALL_BENCH_PROGRESS"  # environment variable that names the file; without it there is none
FILE_SECONDS = 5.0
LINE = re.compile(r".+: +\d+ %, \d+/\d+ \S+")


class Progress(tqdm):
    """Units done of those wanted, with rate and time left, both since this process began."""

    tokens = 0  # that this process has read; shown as a rate once there are any
    written = 0.0  # when the file was

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a line may show, tokens or units per second among it."""
        found = super().format_dict
        elapsed = found["elapsed"]
        done = found["n"] - found["initial"]
        found["rate"] = done / elapsed if elapsed and done else None
        rate = self.tokens / elapsed if elapsed and self.tokens else found["rate"]
        unit = "tokens" if self.tokens else self.unit.strip()
        found["speed"] = f"{tqdm.format_sizeof(rate)} {unit}/s" if rate else ""
        return found

    @property
    def state(self) -> dict[str, Any]:
        """What the file holds: units done and in all, speed, seconds left, the loss or the task."""
        shown, total = self.format_dict, self.total or self.n
        rate = shown["rate"]
        return {
            "done": self.n,
            "total": total,
            "unit": self.unit.strip(),
            "speed": shown["speed"],
            "seconds_left": (total - self.n) / rate if rate else None,
            "note": self.postfix or "",
        }

    def update(self, n: float = 1) -> bool | None:
        """Counts `n` units more."""
        shown = super().update(n)
        if FILE in os.environ and self._time() - self.written > FILE_SECONDS:
            self.written = self._time()
            with contextlib.suppress(UserError):  # no reason to stop the work
                files.write_json(Path(os.environ[FILE]), self.state)
        return shown

    def skip(self, units: int) -> None:
        """Counts units an earlier run has done: they say nothing of this one's rate."""
        self.initial += units
        self.n += units
        self.last_print_n += units


class _Line(Progress):
    """Progress as whole lines, for outputs that keep everything."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not (self.total or self.n):
            return  # how much there is to do is not known, and nothing is done
        elapsed = self.format_dict["elapsed"]
        self.mininterval = min(max(SHORTEST_SECONDS, elapsed / 20), LONGEST_SECONDS)
        sys.stdout.write(f"{self.desc}: {line(self.state)}\n")
        sys.stdout.flush()

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self.display()

    def __del__(self) -> None:
        self.disable = True  # of a run that was cut: it has nothing to say when it is thrown away


def line(state: dict[str, Any]) -> str:
    """A state in words: ``25 %, 3/12 steps, 4.17k tokens/s, 00:07 left, loss 3.000``."""
    done, total, seconds = state["done"], state["total"], state["seconds_left"]
    share, amount = f"{100 * done // max(total, 1):3d} %", f"{done}/{total} {state['unit']}"
    left = "" if seconds is None else f"{tqdm.format_interval(seconds)} left"
    return ", ".join(filter(None, [share, amount, state["speed"], left, state["note"]]))


def bar(total: int, what: str, unit: str, done: int = 0) -> Progress:
    """A bar of `total` units (0: not known), `done` of them by an earlier run."""
    options = {"total": total, "desc": what, "unit": f" {unit}", "initial": done, "smoothing": 0}
    if sys.stderr.isatty():
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{speed}, {remaining} left{postfix}]"
        return Progress(**options, ncols=96, unit_scale=unit == "B", bar_format=form)
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
