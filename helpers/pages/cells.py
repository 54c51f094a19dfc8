"""Executes the cells of the book's pages, each page in a process of its own.

The processes are forks of one that has made the imports of all pages: a kernel that MyST-NB starts
for a page imports torch anew, which takes longer than the page. Outputs go to MyST-NB's cache.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from helpers.base import machine

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
BACKEND = "module://matplotlib_inline.backend_inline"
ENVIRONMENT = {
    **{"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "MPLBACKEND": BACKEND},
    **{"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
}
FAILED = "failed"  # in a notebook's metadata: which cell, and its error; empty where all went well


def execute(values: dict[str, str], app: Any, env: Any, docnames: list[str]) -> None:  # noqa: ANN401
    """Executes those of the pages Sphinx is about to read whose cells are not in the cache.

    `values` are for their environment, the rest is what ``env-before-read-docs`` gives. A cell that
    fails is an ``ExtensionError`` with the page, the cell and its error.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from myst_nb.core.read import create_nb_reader
    from sphinx.errors import ExtensionError

    settings = env.mystnb_config
    cache, pages = get_cache(settings.execution_cache_path), {}
    for place in (Path(env.doc2path(name)) for name in docnames):
        text = place.read_text(encoding="utf-8")
        reader = create_nb_reader(str(place), env.myst_config, settings, text)
        if reader and place.suffix == ".md":
            pages[place] = reader.read(text)
            with contextlib.suppress(KeyError):
                cache.match_cache_notebook(pages[place])
                del pages[place]
    if not pages:
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {place: Path(folder, f"{place.stem}.ipynb") for place in pages}
        for place, path in paths.items():
            nbformat.write(pages[place], path)
        command = [sys.executable, "-m", __name__, str(settings.execution_timeout)]
        command += map(str, paths.values())
        environment = os.environ | ENVIRONMENT | values
        subprocess.run(command, cwd=app.srcdir, env=environment)
        for place, path in paths.items():
            notebook = nbformat.read(path, as_version=4)
            died = f"ended early, or took more than {settings.execution_timeout} s"
            if failed := notebook.metadata.pop(FAILED, died):
                raise ExtensionError(f"{place.relative_to(app.srcdir)}: {failed}")
            bundle = CacheBundleIn(notebook, str(place), data={})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _import(source: str) -> None:
    """Makes the imports of a cell; what is wrong with it is told where the page runs."""
    with contextlib.suppress(SyntaxError):
        for node in ast.parse(source).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]  # modules of it, or its own
                names.append(str(node.module))
            elif not isinstance(node, ast.Import):
                continue
            for name in names:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def _run(path: Path, turn: Semaphore, seconds: int) -> None:
    """Executes one notebook in this process, and writes it back with its outputs."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from matplotlib_inline.backend_inline import configure_inline_support, set_matplotlib_formats
    from nbformat.v4 import new_output
    from traitlets.config import Config

    with turn:
        signal.alarm(seconds)
        notebook = nbformat.read(path, as_version=4)
        # What the kernel of a notebook would say of itself.
        notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        configure_inline_support(shell, BACKEND)
        set_matplotlib_formats("svg")
        notebook.metadata[FAILED] = ""
        for number, cell in enumerate(_code(notebook), start=1):
            with shell.display_trap, capture_output() as said:
                result = shell.run_cell(cell.source)
            if error := result.error_before_exec or result.error_in_exec:
                name = type(error).__name__
                notebook.metadata[FAILED] = f"code cell {number}: {name}: {error}"
                break
            texts = {"stdout": said.stdout, "stderr": said.stderr}
            cell.execution_count = number
            cell.outputs = [new_output("stream", name=n, text=t) for n, t in texts.items() if t]
            for shown in said.outputs:
                cell.outputs.append(new_output("display_data", shown.data, metadata=shown.metadata))
        nbformat.write(notebook, path)


def main() -> None:
    """Executes notebooks, as many at a time as there are cores; the seconds for one come first."""
    seconds, *paths = int(sys.argv[1]), *map(Path, sys.argv[2:])
    for path in paths:
        for cell in _code(nbformat.read(path, as_version=4)):
            _import(cell.source)
    context = multiprocessing.get_context("fork")
    turn = context.Semaphore(machine.cores())
    running = [context.Process(target=_run, args=(path, turn, seconds)) for path in paths]
    for process in running:
        process.start()
    for process in running:
        process.join()


if __name__ == "__main__":
    main()
