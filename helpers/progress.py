"""Progress of long work: a bar in a terminal, a line every few seconds in a notebook or a log."""

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """Turns tqdm's redrawn bar into whole lines, for outputs that keep everything."""

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            sys.stdout.write(line + "\n")

    def flush(self) -> None:
        sys.stdout.flush()


def bar(total: int, what: str, unit: str, done: int = 0, scale: bool = False) -> tqdm:
    """A progress bar with rate and time left.

    Args:
        total: Units of work in all.
        what: Label.
        unit: Name of one unit.
        done: Units an earlier, interrupted run has finished.
        scale: Print thousands and millions of units as k and M.
    """
    options = {"total": total, "desc": what, "unit": f" {unit}", "initial": done, "ncols": 96}
    options["unit_scale"] = scale
    if sys.stderr.isatty():
        return tqdm(**options)
    return tqdm(
        **options, file=_Lines(), mininterval=SECONDS_BETWEEN_LINES, maxinterval=1e9, ascii=True
    )
