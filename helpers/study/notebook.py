"""Executes one notebook through papermill: checked parameters, one-line failures.

The executed notebook is written whether the run succeeds or fails. Progress lines of the notebook
go to the terminal, each with the job's name.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager

from helpers.base import config, files, progress
from helpers.base.errors import PREEMPTED, Preempted, UserError, did_you_mean, run_main
from helpers.study import executed as notebooks

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


class _Labelled:
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

    def flush(self) -> None:
        sys.stderr.flush()


def check(notebook: Path, parameters: dict[str, object]) -> None:
    """Checks parameters against the notebook's class before a kernel is started.

    Raises:
        UserError: For a notebook without a stage, or a parameter that is wrong.
    """
    cls = config.NOTEBOOKS.get(notebook.stem)
    if cls is None:
        raise UserError(
            f"{notebook.name}: not a stage; {did_you_mean(notebook.stem, config.NOTEBOOKS)}"
        )
    config.validate(cls, parameters, notebook.name)
    if not notebook.is_file():
        raise UserError(f"{notebook}: no such file")


def parse(text: str) -> dict[str, object]:
    """Parameters from a command line.

    Raises:
        UserError: When the text is no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--parameters: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"--parameters = {text[:80]}: must be a JSON object")
    return found


def execute(notebook: Path, executed: Path, parameters: dict[str, object]) -> None:
    """Runs the notebook in the checkout's root and writes what came out to `executed`.

    SIGTERM is passed on to the kernel, where a training loop saves its state and ends.

    Raises:
        Preempted: After SIGTERM.
        UserError: Naming notebook, cell and error when a cell fails, or a place that cannot be
            written.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    check(notebook, parameters)
    os.environ.update(ENVIRONMENT)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    part = notebooks.part(executed)
    lines = _Labelled(executed.stem)
    # Kernels of parallel jobs race for free ports; sockets in a folder of their own cannot.
    sockets = tempfile.mkdtemp(prefix="kernel-")
    kernels: list[AsyncKernelManager] = []
    asked = []

    def preempt(*_: object) -> None:
        asked.append(True)
        running = [k.provisioner.pid for k in kernels if k.provisioner and k.provisioner.pid]
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        if not running:
            raise Preempted(f"{executed}: stopped by SIGTERM before it began")

    before = signal.signal(signal.SIGTERM, preempt)
    try:
        with files.lock(executed.parent, notebooks.lock(executed).name):
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(part),
                    parameters=parameters,
                    cwd=str(files.root()),
                    progress_bar=False,
                    stdout_file=lines,
                    kernel_manager_class=_kernel_manager(sockets, kernels),
                    # A kernel that is shut down in the middle of an interrupt would log it.
                    extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                )
            finally:
                if part.exists():
                    files.write_text(executed, part.read_text(encoding="utf-8"))
                    part.unlink()
    except (PapermillExecutionError, DeadKernelError) as error:
        line = f"{executed}: {notebooks.failure(executed) or type(error).__name__}"
        raise (Preempted if asked else UserError)(line) from None
    except RuntimeError as error:  # the kernel did not come up
        line = f"{executed}: {' '.join(str(error).split())}"
        raise (Preempted if asked else UserError)(line) from None
    except OSError as error:  # papermill writes before it begins
        raise UserError(f"{executed}: cannot write: {error.strerror or error}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(sockets, ignore_errors=True)


def _kernel_manager(folder: str, made: list[AsyncKernelManager]) -> type:
    """A class of kernel managers with their sockets in `folder`; each that is made joins `made`."""

    class SocketKernelManager(AsyncKernelManager):
        def __init__(self, **options: object) -> None:
            super().__init__(
                **options, transport="ipc", connection_file=str(Path(folder) / "kernel.json")
            )
            made.append(self)

    return SocketKernelManager


def run(notebook: Path, executed: Path, parameters: dict[str, object]) -> int:
    """Executes a notebook and tells how that ended in one line; gives the exit status."""
    began = time.perf_counter()
    try:
        execute(notebook.resolve(), executed.resolve(), parameters)
    except UserError as error:
        print(f"[{executed.stem}] failed: {error}", file=sys.stderr, flush=True)
        return PREEMPTED if isinstance(error, Preempted) else 1
    seconds = time.perf_counter() - began
    print(f"[{executed.stem}] done in {seconds:.0f} s", file=sys.stderr, flush=True)
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path, help="notebooks/<stage>.ipynb")
    parser.add_argument("executed", type=Path, help="where to write the executed notebook")
    parser.add_argument("--parameters", default="{}", help="JSON object")
    options = parser.parse_args()
    try:
        parameters = parse(options.parameters)
    except UserError as error:
        print(f"[{options.executed.stem}] failed: {error}", file=sys.stderr, flush=True)
        return 1
    return run(options.notebook, options.executed, parameters)


if __name__ == "__main__":
    run_main(main)
