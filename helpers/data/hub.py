"""What is read from the Hugging Face Hub: at one commit, through its client's cache."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub  # light; what needs its HTTP client is imported where it is used

from helpers.base import files
from helpers.base.errors import UserError

OTHERWISE = "or give a folder of files, --data"
LOGIN = "log in with `hf auth login`"
SECONDS = 10  # that the Hub has to answer


@contextmanager
def reaching(what: str, otherwise: str) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into a line: its cause, and a remedy.

    `what` begins the line, and is its subject.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the clients raise many kinds: sockets, proxies, HTTP, JSON
        raise UserError(f"{what} {_cause(error)}; {otherwise}") from None


def _cause(error: BaseException) -> str:
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # the client tries its cache, and says that there is nothing
    kinds = {kind.__name__ for kind in type(error).__mro__}  # which client it is differs by version
    status = getattr(getattr(error, "response", None), "status_code", 0)
    line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return "is not all in the Hub's cache here, and HF_HUB_OFFLINE is set"
    if "GatedRepoError" in kinds:
        return f"is gated: accept its conditions on huggingface.co and {LOGIN}"
    if "RevisionNotFoundError" in kinds:
        return "has no such revision on the Hub"
    if "RepositoryNotFoundError" in kinds:
        return f"is not on the Hub, or is private: then {LOGIN}"
    told = {
        401: f"is refused to this login (401): {LOGIN}",
        403: f"is refused to this login (403): ask its owner for access, or {LOGIN} as another",
        429: f"cannot be fetched: too many requests (429): wait some minutes, or {LOGIN}",
    }
    if status in told:
        return told[status]
    if status >= 500:
        return f"cannot be fetched: the Hub is out of order ({status}): try again later"
    if "TimeoutException" in kinds:
        return f"cannot be fetched: the Hub does not answer in time ({type(error).__name__})"
    if kinds & {"ConnectError", "ProxyError"}:
        return f"cannot be fetched: no connection to the Hub ({line})"
    if "TransportError" in kinds:
        return f"cannot be fetched: the connection broke ({line}): run it again to go on"
    return f"cannot be fetched from the Hub ({line})"


def listing(name: str, commit: str | None = None) -> tuple[str, list[str]]:
    """The commit of a data set, today's where none is given, and the names of its files.

    Without the Hub they are those that its cache here has, and a line says so.
    """
    with reaching(f"source = 'hub': {name}", OTHERWISE):
        try:
            about = huggingface_hub.HfApi().dataset_info(name, revision=commit, timeout=SECONDS)
            if not re.fullmatch("[0-9a-f]{40}", about.sha):
                raise ValueError(f"{about.sha!r:.20} is no commit")
            return about.sha, [one.rfilename for one in about.siblings]
        except Exception as error:
            if not (there := _cached(name, commit)):
                raise
            offline = type(error).__name__ == "OfflineModeIsEnabled"
            why = "HF_HUB_OFFLINE is set" if offline else f"{name} {_cause(error)}"
            print(f"{why}; what the Hub's cache here has of it is used, commit {there[0]}")
            return there


def _cached(name: str, commit: str | None) -> tuple[str, list[str]] | None:
    """Commit and files of the snapshot in the Hub's cache that was last added to; else None."""
    from huggingface_hub import constants

    with suppress(huggingface_hub.CacheNotFound):
        repositories = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
        mine = [one for one in repositories if (one.repo_type, one.repo_id) == ("dataset", name)]
        there = [one for repository in mine for one in repository.revisions]
        there = [one for one in there if commit in (None, one.commit_hash)]
        if last := max(there, key=lambda one: one.last_modified, default=None):
            paths = [one.file_path.relative_to(last.snapshot_path) for one in last.files]
            return last.commit_hash, [path.as_posix() for path in paths]
    return None


def download(name: str, file: str, commit: str) -> Path:
    """A file of a data set in the Hub's cache; what a broken download has left there is used."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with reaching(f"source = 'hub': {name}: {file}", OTHERWISE):
        return Path(
            huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=commit)
        )


def pinned(folders: Iterable[Path]) -> str:
    """The commit that a manifest of these folders names; empty without."""
    for folder in folders:
        with suppress(UserError):
            told = files.read_manifest(folder / files.MANIFEST)["specification"]
            if told.get("source") == "hub":
                return told["revision"]
    return ""
