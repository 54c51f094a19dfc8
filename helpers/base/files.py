"""Files that matter: written whole or not at all, hashed, and vouched for by a manifest."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from helpers.base.errors import UserError

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"  # of an installed package
MANIFEST = "manifest.json"  # its ``spec`` is the digest of all that the folder follows from
# The same again: Snakemake deletes a rule's outputs before it runs, and the work is still there.
KEPT = ".manifest.json"
RUN = "run.json"  # in a run's folder: what it was asked for, read by its jobs and pages
LFS = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what keeps the system from writing to `path` becomes a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; on success it is flushed and renamed to `path`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write into; on success it takes the place of `folder`, whole."""
    made = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        try:
            if made.exists():  # of a run that was killed
                shutil.rmtree(made)
            made.mkdir(parents=True)
            yield made
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def lock(folder: Path, name: str = ".lock", wait: bool = False) -> Iterator[int]:
    """Holds a folder, or one name in it, against other processes while inside; gives a descriptor.

    Where another process holds it, this one ends with a line, or waits. The lock is the kernel's:
    it ends with this process and those that inherit its descriptor, however they end. Where the
    system or the file system knows no locks (Windows, some network folders), nothing is held.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+")
    with file:
        if not _try_lock(file):
            file.seek(0)
            line = f"{folder}: in use by process {file.read().strip()}"
            if not wait:
                raise UserError(f"{line}; wait for it, or use another profile")
            print(f"{line}; waiting for it")
            while not _try_lock(file):
                time.sleep(0.5)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def lock_holder(folder: Path, name: str = ".lock") -> str:
    """The number of the process that holds a folder, or a name in it (`lock`); else empty."""
    try:
        with (folder / name).open("r") as file:
            return "" if _try_lock(file, shared=True) else file.read().strip() or "unknown"
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{folder / name}: cannot read: {error.strerror or error}") from error


def _try_lock(file: TextIO, shared: bool = False) -> bool:
    """Whether the lock was free or there are none here; `lock_holder` has one for an instant."""
    try:
        import fcntl
    except ImportError:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for wait in (0.0,) if shared else (0.05, 0.1, 0.0):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            return True
    return False


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, with the same bytes on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically: sorted keys, two spaces, no NaN."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that is missing, damaged or no object is a :class:`UserError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, ValueError):
            refuse_pointer(path)
        raise UserError(f"{path}: damaged, delete it and run its stage again ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(found).__name__}")
    return found


def visible(folder: Path, pattern: str) -> list[Path]:
    """The paths of a pattern, sorted, without hidden ones: systems and tools leave those behind."""
    found = (path.relative_to(folder) for path in folder.glob(pattern))
    return sorted(folder / path for path in found if not any(part[0] == "." for part in path.parts))


def refuse_pointer(path: Path) -> None:
    """A Git LFS pointer, which stands in the place of a file, is a :class:`UserError`."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path}: is a Git LFS pointer; `git lfs pull` fetches the file itself")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        refuse_pointer(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None


def digest(value: object) -> str:
    """The SHA-256 of a JSON value in its canonical form; names a specification by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """Marks a folder complete: writes ``manifest.json``, last, with the hash of each of `files`."""
    manifest = {**manifest, "files": {name: sha256(folder / name) for name in sorted(files)}}
    write_json(folder / KEPT, manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def intact_manifest(folder: Path, spec: str) -> dict[str, Any] | None:
    """The manifest of a folder that was completed from `spec` and is still whole, else None.

    Where an attempt with other parameters removed it and changed no file, it is written again.
    """
    for path in (folder / MANIFEST, folder / KEPT):
        try:
            manifest = read_manifest(path)
        except UserError:
            continue
        if manifest.get("spec") == spec and not any(_changed(folder, manifest)):
            if path.name == KEPT:
                write_json(folder / MANIFEST, manifest)
            return manifest
    return None


class _Manifest(dict[str, Any]):
    path: Path

    def __missing__(self, name: str) -> None:  # as of an older version
        raise UserError(
            f"{self.path}: has no {name}: delete {self.path.parent}, run its stage again"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest; what is missing in it, asked for later, is a :class:`UserError` too."""
    manifest = _Manifest(read_json(path))
    manifest.path = path
    return manifest


def find_manifest(folder: Path, spec: str = "") -> dict[str, Any] | None:
    """The manifest of a folder, its files taken on trust; None without, or of another `spec`."""
    path = folder / MANIFEST
    manifest = read_manifest(path) if path.exists() else None
    return manifest if manifest and spec in ("", manifest["spec"]) else None


def _changed(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """The files of a manifest that are missing or not the ones it vouches for."""
    for name, value in sorted(manifest["files"].items()):
        path = folder / name
        if not path.is_file() or sha256(path) != value:
            yield path


def require_manifest(folder: Path, stage: str, remedy: str = "") -> dict[str, Any]:
    """The manifest of a folder an earlier stage made; else a line names the notebook to run."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder}: not there yet; run notebooks/{stage}.ipynb first{remedy}")
    return read_manifest(path)


def require_intact(folder: Path, stage: str, remedy: str = "") -> dict[str, Any]:
    """What `require_manifest` gives, if every file that it vouches for is as it was."""
    manifest = require_manifest(folder, stage, remedy)
    for path in _changed(folder, manifest):
        raise UserError(
            f"{path}: missing or changed since its manifest was written; delete it and run "
            f"notebooks/{stage}.ipynb again{remedy}"
        )
    return manifest


def remove_manifest(folder: Path) -> None:
    """Removes the manifest before the content changes."""
    with writing(folder):
        (folder / MANIFEST).unlink(missing_ok=True)


def root() -> Path:
    """The checkout around the working directory, else this file's, else the directory itself."""
    here, own = Path.cwd(), Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, own):
        if (folder / "_toc.yml").exists() and (folder / "helpers").is_dir():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """A path as a user writes it: relative ones start at the checkout, ``~`` is the home."""
    try:
        found = root() / Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, locked away; ~ of nobody
        raise UserError(f"path {str(path)!r}: cannot be used: {error}") from None
    return found


def find(path: str | Path) -> Path:
    """A path to read from: as :func:`resolve`, else the file installed with the package."""
    own, shipped = resolve(path), SHIPPED / path
    return shipped if shipped.exists() and not own.exists() else own
