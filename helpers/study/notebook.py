"""Executes one notebook through papermill; a failure is one line.

The executed notebook is written whether the run succeeds or fails. Progress lines go to the
terminal, each with the job's name. While it runs, three files stand beside it (:func:`beside`).
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from helpers.base import config, files, progress
from helpers.base.errors import (
    PREEMPTED,
    STOPS,
    Preempted,
    UserError,
    did_you_mean,
    run_main,
)

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
LONGEST_PATH = 103  # bytes of a socket's path, the least of the systems' limits


def executed(run: Path, stage: str, *parts: str) -> Path:
    """Where an executed notebook of a run is kept: ``<run>/notebooks/03_pretrain-bert.ipynb``."""
    return run / "notebooks" / f"{'-'.join((stage, *parts))}.ipynb"


def beside(notebook: Path, ending: str) -> Path:
    """A file beside a running one: ``ipynb`` so far, runner's ``lock``, ``progress.json``."""
    return notebook.with_name(f".{notebook.stem}.{ending}")


def failure(notebook: Path) -> str:
    """Where and why an executed notebook failed, in one line; empty when it did not."""
    code = [cell for cell in _read(notebook).get("cells", []) if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                reason = (output["evalue"].splitlines() or [""])[0]
                return f"code cell {number}: {output['ename']}: {reason}"
    return ""


def papermill_facts(notebook: Path) -> dict[str, Any]:
    """What papermill noted of its last execution, ``duration`` and ``end_time`` among it."""
    return _read(notebook).get("metadata", {}).get("papermill", {})


def _read(notebook: Path) -> dict[str, Any]:
    """A notebook as JSON; empty where it is damaged or not there."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class _Labelled(io.TextIOBase):
    """A text stream that writes whole lines to the terminal, each after a label."""

    def __init__(self, label: str) -> None:
        self.label, self.rest = label, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            # Progress only: what the notebook prints for its reader stays in the notebook.
            if progress.LINE.match(line.strip()):
                print(f"[{self.label}] {line.strip()}", file=sys.stderr, flush=True)
        return len(text)


def execute(notebook: Path, out: Path, parameters: dict[str, object]) -> None:
    """Runs the notebook in the checkout's root and writes what came out to `out`.

    At SIGTERM or Ctrl-C the kernel gets SIGTERM, at which a training loop saves its state and ends;
    then :class:`Preempted` is raised. A cell that fails is named with its error.
    """
    kernels: list[AsyncKernelManager] = []
    with _stopping(kernels, out) as asked:
        try:
            with files.lock(out.parent, beside(out, "lock").name):
                _papermill(notebook, out, parameters, kernels)
        except UserError:
            raise
        except OSError as error:  # papermill writes before it begins
            what = "read" if error.filename == str(notebook) else "write"
            raise UserError(
                f"{error.filename or out}: cannot {what}: {error.strerror or error}"
            ) from None
        except Exception as error:  # of papermill, nbclient, nbformat, jupyter_client, ZMQ
            told = failure(out)
            line = f"{out}: {told or 'stopped; run it again to go on'}"
            if not (told or asked):  # the notebook cannot be read, or its kernel does not start
                line = f"{notebook}: {type(error).__name__}: {' '.join(str(error).split())}"
            raise (Preempted if asked else UserError)(line) from None


@contextlib.contextmanager
def _stopping(kernels: list[AsyncKernelManager], out: Path) -> Iterator[list[bool]]:
    """Inside, a signal to end goes to the kernels; gives a list that is not empty after one."""
    asked: list[bool] = []

    def preempt(*_: object) -> None:
        asked.append(True)
        running = [k.provisioner.pid for k in kernels if k.provisioner and k.provisioner.pid]
        for pid in running:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, signal.SIGTERM)
        if not running:
            raise Preempted(f"{out}: stopped before it began")

    before = {number: signal.signal(number, preempt) for number in STOPS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _papermill(
    notebook: Path, out: Path, parameters: dict[str, object], kernels: list[AsyncKernelManager]
) -> None:
    """Runs papermill on the file beside `out`, which takes its place however that ends.

    The kernel's manager joins `kernels`.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    part, told = beside(out, "ipynb"), beside(out, "progress.json")
    told.unlink(missing_ok=True)  # of a run that was killed
    os.environ.update(ENVIRONMENT | {progress.FILE: str(told)})
    sockets = _socket_folder()

    class Manager(AsyncKernelManager):
        """Starts this Python's own kernel, whatever is installed under its name.

        Kernels of parallel jobs race for free ports; sockets in a folder of their own cannot.
        """

        def __init__(self, **options: object) -> None:
            options |= {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
            super().__init__(**options)
            kernels.append(self)

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    try:
        papermill.execute_notebook(
            str(notebook),
            str(part),
            parameters=parameters,
            cwd=str(files.root()),
            kernel_name="python3",  # whatever a front end has saved
            language="python",
            progress_bar=False,
            stdout_file=_Labelled(out.stem),
            kernel_manager_class=Manager,
            # A kernel that is shut down in the middle of an interrupt would log it.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    finally:
        os.environ.pop(progress.FILE)
        shutil.rmtree(sockets, ignore_errors=True)
        if part.exists():
            files.write_text(out, part.read_text(encoding="utf-8"))
            part.unlink()
        told.unlink(missing_ok=True)


def _socket_folder() -> str:
    """A new temporary folder, in one whose path leaves room for the names of sockets."""
    room = LONGEST_PATH - len("/kernel-12345678/kernel-ipc-5")
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(place)) <= room and os.access(place, os.W_OK):
            return tempfile.mkdtemp(prefix="kernel-", dir=place)
    raise UserError(
        f"TMPDIR = {tempfile.gettempdir()!r}: longer than {room} bytes, which a kernel's sockets "
        "do not fit in; give a shorter one"
    )


def run(notebook: Path, out: Path, parameters: dict[str, object]) -> int:
    """Executes a notebook and tells how that ended in one line; gives the exit status."""
    began = time.perf_counter()
    try:
        execute(notebook.resolve(), out.resolve(), parameters)
    except UserError as error:
        stopped = isinstance(error, Preempted)
        print(f"[{out.stem}] {'failed: ' * (not stopped)}{error}", file=sys.stderr, flush=True)
        return PREEMPTED if stopped else 1
    print(f"[{out.stem}] done in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return 0


def run_stage(profile: config.Profile, stage: str, changes: list[str]) -> int:
    """Runs the notebook of a stage, ``03_pretrain`` or its path, with a profile's parameters.

    `changes` of them are ``name=value``, read as papermill's -p reads them.
    """
    stage = stage.removesuffix(".ipynb").removeprefix("notebooks/")
    cls = config.NOTEBOOKS.get(stage)
    if cls is None:
        raise UserError(f"{stage!r}: no such notebook; {did_you_mean(stage, config.NOTEBOOKS)}")
    values = profile.stage(cls) if issubclass(cls, config.Stage) else {}
    values |= dict(_change(text) for text in changes)
    parameters = config.validate(cls, values, f"{stage}.ipynb")
    folder = parameters.folder if isinstance(parameters, config.Stage) else profile.folder
    if isinstance(parameters, config.Finetune) and profile.source == "folder":
        values |= _bring_tasks(parameters, profile)
        parameters = config.validate(cls, values, f"{stage}.ipynb")
    out = executed(folder, stage, *_parts(parameters))
    status = run(files.find(f"notebooks/{stage}.ipynb"), out, values)
    if status == 0:
        print(f"open {os.path.relpath(out)}")
    return status


def _bring_tasks(parameters: config.Finetune, profile: config.Profile) -> dict[str, list[str]]:
    """The tasks of a checkpoint from elsewhere, prepared: alone it would take them from the Hub."""
    from helpers.data import glue
    from helpers.model import registry

    if registry.knows(parameters.model):
        return {}
    tasks = glue.announce(profile.source, profile.data, parameters.tasks)
    place = {"runs": parameters.runs, "profile": parameters.profile}
    glue.prepare(config.Data(**profile.stage(config.Data, **place)), tasks)
    return {"tasks": tasks}


def _change(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{text!r} is not name=value")
    if value in ("True", "False"):
        return name, value == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


def _parts(parameters: config.Strict) -> list[str]:
    """What tells a job from others of its stage: a tokenizer, a model, a single task."""
    if isinstance(parameters, config.Tokenizer):
        return [parameters.tokenizer_kind]
    if not isinstance(parameters, config.Training):
        return []
    tasks = getattr(parameters, "tasks", [])
    name = re.sub(r"[^\w.@+-]+", "--", parameters.model).strip("-")  # it may be a folder
    return [name, *(tasks if len(tasks) == 1 else [])]


def main() -> int:
    """The grid's way in: a notebook, where to write it, its parameters as a JSON object."""
    source, out, text = sys.argv[1:]
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"parameters: not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise UserError(f"parameters = {text[:80]}: must be a JSON object")
    return run(Path(source), Path(out), parameters)


if __name__ == "__main__":
    run_main(main)
