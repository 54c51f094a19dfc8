"""Executes the cells of the book's pages, each page in a process of its own.

The processes are forks of Sphinx's own, which has made the imports of all pages: a kernel that
MyST-NB starts for a page imports torch anew, which takes longer than the page. Outputs go to
MyST-NB's cache.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.base import machine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Semaphore

    from nbformat import NotebookNode

BACKEND = "module://matplotlib_inline.backend_inline"
ENVIRONMENT = {  # of the process that executes pages, from its start
    **{"MPLBACKEND": BACKEND, "TOKENIZERS_PARALLELISM": "false"},
    **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
}


def execute(app: Any, env: Any, docnames: list[str]) -> None:  # noqa: ANN401
    """Executes those of the pages Sphinx is about to read whose cells are not in the cache.

    Takes what ``env-before-read-docs`` gives. A cell that fails is an ``ExtensionError`` with the
    page, the cell and its error.
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
    for page in pages.values():
        for cell in _code(page):
            _import(cell.source)
    context, answers = multiprocessing.get_context("fork"), {}
    turn, seconds = context.Semaphore(machine.cores()), settings.execution_timeout
    for place, page in pages.items():
        answers[place], answer = context.Pipe(duplex=False)
        context.Process(target=_run, args=(page, app.srcdir, answer, turn, seconds)).start()
        answer.close()
    executed = {}
    for place, answer in answers.items():  # every one: a process ends when its answer is read
        try:
            executed[place] = answer.recv()
        except EOFError:
            executed[place] = None, f"ended early, or took more than {seconds} s"
    for place, (page, failed) in executed.items():
        if failed:
            raise ExtensionError(f"{place.relative_to(app.srcdir)}: {failed}")
        bundle = CacheBundleIn(page, str(place), data={})
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


def _run(
    page: NotebookNode, folder: str, answer: Connection, turn: Semaphore, seconds: int
) -> None:
    """Executes a page's cells in this process; answers it with its outputs, and what failed."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from matplotlib_inline.backend_inline import configure_inline_support, set_matplotlib_formats
    from nbformat.v4 import new_output
    from traitlets.config import Config

    os.chdir(folder)
    warnings.simplefilter("ignore")
    with turn:
        signal.alarm(seconds)
        # What the kernel of a notebook would say of itself.
        page.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        configure_inline_support(shell, BACKEND)
        set_matplotlib_formats("svg")
        failed = ""
        for number, cell in enumerate(_code(page), start=1):
            with shell.display_trap, capture_output() as said:
                result = shell.run_cell(cell.source)
            if error := result.error_before_exec or result.error_in_exec:
                failed = f"code cell {number}: {type(error).__name__}: {error}"
                break
            texts = {"stdout": said.stdout, "stderr": said.stderr}
            cell.execution_count = number
            cell.outputs = [new_output("stream", name=n, text=t) for n, t in texts.items() if t]
            for shown in said.outputs:
                cell.outputs.append(new_output("display_data", shown.data, metadata=shown.metadata))
        signal.alarm(0)
    answer.send((page, failed))
