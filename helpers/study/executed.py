"""Executed notebooks: their names, whether they run, how far they are, why they failed.

A job is one executed notebook, ``runs/<profile>/notebooks/<name>.ipynb``. While it runs, papermill
writes to a file beside it, and the runner holds a lock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.base import progress


def name(stage: str, *parts: str) -> str:
    """The name of an executed notebook, without its ending: ``03_pretrain-bert``."""
    return "-".join((stage, *parts))


def shown(names: Sequence[str]) -> str:
    """The model whose notebooks the book shows: the last one, but not the control."""
    trained = [name for name in names if name != "scratch"]
    return (trained or list(names))[-1]


def part(notebook: Path) -> Path:
    """The file that is written while the notebook runs, some 30 seconds behind; then renamed."""
    return notebook.with_name(f".{notebook.name}")


def lock(notebook: Path) -> Path:
    """The lock that its runner holds (`files.lock`)."""
    return notebook.with_name(f".{notebook.stem}.lock")


def _outputs(notebook: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every output with the number of its code cell; none of a file that is damaged or away."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not there yet, or being written at this moment
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        for output in cell.get("outputs", []):
            yield number, output


def failure(notebook: Path) -> str:
    """Where and why an executed notebook failed, in one line; empty when it did not."""
    for number, output in _outputs(notebook):
        if output["output_type"] == "error":
            reason = (output["evalue"].splitlines() or [""])[0]
            return f"code cell {number}: {output['ename']}: {reason}"
    return ""


def last_line(notebook: Path) -> tuple[str, float]:
    """The last line of progress in a notebook, with its age, and the share done it tells of."""
    text = "".join(
        "".join(output["text"])
        for _, output in _outputs(notebook)
        if output["output_type"] == "stream"
    )
    found = [match for line in text.splitlines() if (match := progress.LINE.match(line))]
    if not found:
        return "", 0.0
    last = found[-1]
    line = last.group().removeprefix(f"{last['what']}:").strip()
    age = progress.duration(time.time() - notebook.stat().st_mtime)
    return f"{line} ({age} ago)", int(last["done"]) / max(1, int(last["total"]))


def seconds(notebook: Path) -> float:
    """Wall time of its last execution, which may have found all done; 0 where it is not known."""
    try:
        about = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["papermill"]
        return float(about["duration"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def ended(notebook: Path) -> str:
    """When its last execution ended, ISO 8601; empty where it is not known."""
    about = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    return about.get("papermill", {}).get("end_time") or ""
