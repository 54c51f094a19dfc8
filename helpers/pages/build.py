"""Builds the book of one run: pages that compute themselves and executed notebooks, as HTML.

The sources are put together in ``<run>/book/source`` and the pages written to
``<run>/book/html``; ``index.html`` there is the page to open. Sphinx warnings are errors. Pages
compute again when records, results or code have changed; else only what is new is read.
"""

from __future__ import annotations

import ast
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from helpers.base import files
from helpers.base.errors import UserError, run_main
from helpers.pages import comparisons, tables, view

ROOT = Path(__file__).resolve().parents[2]
READ = {".json", ".csv", ".yaml", ".py", ".html"}  # what pages compute from
# Of the kernels that execute pages.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
KERNEL = """c.InteractiveShellApp.matplotlib = "inline"
c.InlineBackend.figure_formats = {"svg"}
c.IPKernelApp.log_level = "CRITICAL"
"""
# What Jupyter Book loads by itself and this book does without: it only adds remote scripts.
UNUSED = ("sphinx_thebe", "sphinx_comments", "sphinx.ext.intersphinx")
DECLARED = re.compile(r"^(\w+)(: \w+) = (.*?)(  # .*)$", re.MULTILINE)
REMOTE_IMAGE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")
REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Small-Bench NLP</title>
<meta http-equiv="refresh" content="0; url={page}"></head>
<body><a href="{page}">Small-Bench NLP</a></body>
</html>
"""


def main() -> int:
    """The Snakefile's way in: the folder of a run, then executed notebooks, one per stage."""
    run, *notebooks = map(Path, sys.argv[1:])
    return build(run, notebooks)


def build(run: Path, notebooks: list[Path], partial: bool = False) -> int:
    """Puts the sources together and builds the pages; 0 where there was no warning, else 1.

    `run` is a run's folder, `notebooks` are executed, their names up to the first hyphen the stage.
    With `partial` a stage without one is shown as it stands in the repository.
    """
    source, pages = run / "book" / "source", run / "book" / "html"
    changed = _replace(source, sources(run, notebooks, partial))
    # Sphinx copies style sheets only when a page is written, and does not watch extensions.
    every = any(place.startswith(("book/_static/", "book/_ext/")) for place in changed)
    cache = run / "book" / "cache" / inputs(run)
    for other in cache.parent.glob("*"):
        if other != cache:
            shutil.rmtree(other)
    kernel = cache / "ipython" / "profile_default" / "ipython_kernel_config.py"
    files.write_text(kernel, KERNEL)
    before = dict(os.environ)
    os.environ |= ENVIRONMENT
    os.environ |= {
        view.VARIABLE: str(run.resolve()),
        # Of two checkouts in one environment a page runs the code of its own.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])]),
        "IPYTHONDIR": str(kernel.parents[1].resolve()),
    }
    try:
        # A process of its own: sphinx-external-toc looks at every object alive, and dies of some.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            status = process.submit(_sphinx, source, pages, cache, every).result()
    finally:
        os.environ.clear()
        os.environ |= before
    if status == 0:
        # Records and predictions stand beside the pages that link to them.
        kept = sorted((run / "records").glob("*/*/seed-*"))
        content = {p.relative_to(run / "records").as_posix(): p.read_bytes() for p in kept}
        _replace(pages / "records", content)
        root = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))["root"]
        (pages / "index.html").write_text(REDIRECT.format(page=f"{root}.html"), encoding="utf-8")
    return status


def inputs(run: Path) -> str:
    """A digest of all that pages compute from, so that cells run again when it has changed."""
    names = ("records", files.RUN, comparisons.FILE, tables.HEADS, "data/glue", "models")
    folders = [ROOT / name for name in (view.NOTE, "results", "leaderboard", "helpers")]
    found = []
    for folder in (*folders, *(run / name for name in names)):
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            read = path.suffix in READ or folder.name == "leaderboard"
            if read and path.is_file():
                found.append(files.sha256(path))
    return files.digest(found)[:16]


def sources(run: Path, notebooks: list[Path], partial: bool = False) -> dict[str, bytes]:
    """Every file of the book's source, by its path in the repository; arguments as for `build`."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run; `make book` makes runs/tiny")
    found = {name: (ROOT / name).read_bytes() for name in ("_config.yml", "_toc.yml")}
    for path in sorted((ROOT / "book").rglob("*")):
        place = path.relative_to(ROOT)
        if path.is_file() and "__pycache__" not in place.parts:
            found[place.as_posix()] = path.read_bytes()
    shown = view.open_run(run)
    for path in notebooks:
        if not path.is_file():
            raise UserError(f"{path}: no such executed notebook")
        place = f"notebooks/{path.stem.split('-')[0]}.ipynb"
        if place in found:
            raise UserError(f"{path}: a second notebook for the page {place}; give one per stage")
        # The audit is of published figures, not of a run.
        notes = [str(view.note(shown, foot=foot)) for foot in (False, True)]
        found[place] = clean(path, *notes if path.stem != "06_audit" else ())
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for stage in re.findall(r"file: (notebooks/\S+)", toc):
        if f"{stage}.ipynb" not in found and not partial:
            raise UserError(f"no executed notebook was given for the page {stage}")
        note = str(view.note(shown, executed=False))
        found.setdefault(f"{stage}.ipynb", clean(ROOT / f"{stage}.ipynb", note))
    return found


def clean(path: Path, note: str = "", foot: str = "") -> bytes:
    """An executed notebook without widgets, run metadata, remote images and this machine's paths.

    `note` is Markdown for a cell below its title, `foot` for one at its end. Parameters stand once,
    where they are declared, with the values of the run.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a notebook ({error})") from None
    for key in ("papermill", "widgets"):
        notebook.get("metadata", {}).pop(key, None)
    for cell in cells:
        for key in ("papermill", "execution"):
            cell.get("metadata", {}).pop(key, None)
        if cell["cell_type"] == "markdown":
            cell["source"] = REMOTE_IMAGE.sub(r"\1", "".join(cell["source"]))
    _show_parameters_once(cells)
    for place, text in ((1, note), (len(cells) + 1, foot)):
        if text:
            cell = {"cell_type": "markdown", "id": f"about-{place}", "metadata": {}, "source": text}
            cells.insert(place, cell)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    folders = {f"{ROOT}/": "", str(ROOT): "."}
    with contextlib.suppress(RuntimeError):  # in a container a user may have no home
        folders[str(Path.home())] = "~"
    for folder, name in folders.items():
        if len(folder) > 1:
            text = text.replace(folder, name)
    return text.encode()


def _show_parameters_once(cells: list[dict[str, Any]]) -> None:
    """Puts the values of papermill's own cell into the one that declares them, and drops it."""
    declares, injects = (
        [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
        for tag in ("parameters", "injected-parameters")
    )
    if not (declares and injects):
        return
    lines = ast.parse("".join(injects[0]["source"])).body
    given = {line.targets[0].id: ast.unparse(line.value) for line in lines}
    source = DECLARED.sub(
        lambda found: f"{found[1]}{found[2]} = {given.get(found[1], found[3])}{found[4]}",
        "".join(declares[0]["source"]),
    )
    declares[0]["source"] = re.sub(r"\A#.*", "# As this run had them.", source)
    cells.remove(injects[0])


def _replace(folder: Path, content: dict[str, bytes]) -> list[str]:
    """Make a folder hold exactly these files; what is equal keeps its time, the rest is named."""
    changed = []
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in content:
            path.unlink()
    for place, data in content.items():
        path = folder / place
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            changed.append(place)
    return changed


def _sphinx(source: Path, pages: Path, cache: Path, every: bool) -> int:
    """Build with the configuration Jupyter Book makes of ``_config.yml``; warnings are errors."""
    sys.dont_write_bytecode = True  # of the extensions, which lie in the source
    from jupyter_book.config import get_final_config
    from myst_nb.core.execute.base import ExecutionError
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    about, cli = source / "_config.yml", {"latex_individualpages": False}
    config, _ = get_final_config(
        user_yaml=about, cli_config=cli, sourcedir=source, raise_on_invalid=True
    )
    config["extensions"] = [name for name in config["extensions"] if name not in UNUSED]
    config.pop("comments_config", None)
    config["nb_execution_cache_path"] = str(cache / "cells")
    with patch_docutils(str(source)), docutils_namespace():
        folders = (source, None, pages, cache / "doctrees")
        strict = {"warning": sys.stderr, "warningiserror": True, "keep_going": True}
        app = Sphinx(*folders, "html", config, status=None, **strict)
        app.connect("html-page-context", _no_launch, priority=400)
        try:
            app.build(force_all=every)
        except SphinxError as error:
            raise UserError(str(error)) from None
        except ExecutionError as error:
            page, why = os.path.relpath(str(error), source), error.__cause__
            named = hasattr(why, "ename")
            why = f"{why.ename}: {why.evalue}" if named else str(why).splitlines()[0]
            raise UserError(f"{page}: {why}") from None
        return app.statuscode


def _no_launch(app: Any, pagename: str, *_: object) -> None:  # noqa: ANN401
    """Keeps the theme from a Colab link to a page that computes: only notebooks open there."""
    if not pagename.startswith("notebooks/"):
        app.env.metadata[pagename].pop("kernelspec", None)


if __name__ == "__main__":
    run_main(main)
