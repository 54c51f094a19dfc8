"""Documents of the pre-training corpus, from one of three sources, as Parquet with a manifest."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.base import config, files, progress
from helpers.base.errors import UserError
from helpers.data import synthetic

HUB_NAME = "Skylion007/openwebtext"
SHARD = (20_000, 64_000_000)  # documents and characters of a file, at most
SCHEMA = pa.schema([("text", pa.string())])


def run(parameters: config.Data) -> dict[str, Any]:
    """Brings the corpus into the run's folder, ``data/corpus/``; does nothing twice.

    Args:
        parameters: Of the data stage.

    Returns:
        The manifest: source, name, documents, words, bytes (UTF-8), skipped (empty documents) and
        ``content``, the SHA-256 of all texts.

    Raises:
        UserError: When the source is missing, damaged or empty.
    """
    wanted, name = _origin(parameters)
    folder = parameters.folder / "data" / "corpus"
    spec = files.digest(wanted)
    done = files.intact_manifest(folder, spec)
    if done:
        return done
    with files.building(folder) as made:
        return _write(parameters, wanted, name, made)


def finished(parameters: config.Data) -> dict[str, Any] | None:
    """What :func:`run` gives where that is done, else None; the source itself is not read."""
    made = files.find_manifest(parameters.folder / "data" / "corpus")
    return made if made and follows(made["specification"], parameters) else None


def follows(specification: dict[str, Any], parameters: config.Data) -> bool:
    """Whether what a manifest specifies agrees with every parameter of the same name."""
    return all(getattr(parameters, key, value) == value for key, value in specification.items())


def _write(
    parameters: config.Data, wanted: dict[str, Any], name: str, folder: Path
) -> dict[str, Any]:
    """Reads the source and writes what :func:`run` says into an empty folder."""
    content = hashlib.sha256()
    count = words = size = skipped = 0
    written: list[str] = []
    texts = _source(parameters, wanted)
    if parameters.documents:
        texts = islice(texts, parameters.documents)
    bar = progress.bar(parameters.documents or wanted.get("documents", 0), "corpus", "documents")
    for shard in portions(texts, *SHARD):
        kept = [text for text in shard if text and text.strip()]
        for text in kept:
            data = text.encode("utf-8", "replace")
            content.update(len(data).to_bytes(8, "big") + data)
            size, words = size + len(data), words + len(text.split())
        skipped, count = skipped + len(shard) - len(kept), count + len(kept)
        written.append(f"part-{len(written):05d}.parquet")
        with files.replacing(folder / written[-1]) as temporary:
            pq.write_table(pa.table({"text": kept}, SCHEMA), temporary, compression="zstd")
        bar.update(len(shard))
    bar.close()
    if not count:
        raise UserError(f"source = {parameters.source!r}: {name} has no document with text")
    manifest = {
        "spec": files.digest(wanted),
        "specification": wanted,
        "source": parameters.source,
        "name": name,
        "documents": count,
        "words": words,
        "bytes": size,
        "skipped": skipped,
        "content": content.hexdigest(),
    }
    return files.write_manifest(folder, manifest, written)


def portions(texts: Iterable[str], documents: int, characters: int) -> Iterator[list[str]]:
    """Cuts a stream of texts into lists that memory can hold.

    Args:
        texts: Documents; a null counts as empty.
        documents: In one list, at most.
        characters: A list ends with the document that reaches this many.
    """
    portion, size = [], 0
    for text in texts:
        portion.append(text)
        size += len(text or "")
        if len(portion) == documents or size >= characters:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def read(folder: Path) -> Iterator[str]:
    """The documents of a prepared corpus, in order, a thousand in memory at a time."""
    for path in parquet_files(folder):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[str]:
    """The documents of one Parquet file; a null becomes an empty text.

    Raises:
        UserError: When the file is damaged or has no column ``text`` of strings.
    """
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path}: has no column text (it has {names})")
            kind = file.schema_arrow.field("text").type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path}: column text is {kind}; it must be a string")
            row = 0
            for batch in file.iter_batches(1024, columns=["text"]):
                yield from (text or "" for text in decode(batch.column(0), path, "text", row))
                row += len(batch)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not readable as Parquet ({_line(error)})") from None


def decode(column: pa.Array, path: Path, name: str, row: int = 0) -> list[str | None]:
    """The texts of a column.

    Args:
        column: Strings.
        path: Its file, for the error line.
        name: Its name.
        row: Rows of the file before it.

    Raises:
        UserError: Naming the first row whose bytes are not UTF-8: another encoding, or a lone
            surrogate.
    """
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    for number, value in enumerate(column, row):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            raise UserError(
                f"{path}: row {number}: {name} is not UTF-8 ({byte}); convert the texts to UTF-8"
            ) from None
    raise AssertionError("a column that cannot be decoded has a text that cannot")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a source folder, sorted.

    Raises:
        UserError: When the folder is missing or holds none.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        what = "holds no *.parquet" if folder.is_dir() else "no such folder"
        raise UserError(f"data: {folder}: {what}; source folder needs corpus/*.parquet")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: is no file; source folder reads corpus/*.parquet")
    return paths


def _origin(parameters: config.Data) -> tuple[dict[str, Any], str]:
    """What the corpus follows from, and its name for a reader."""
    wanted: dict[str, Any] = {"source": parameters.source, "documents": parameters.documents}
    if parameters.source == "embedded":
        words, seed = parameters.world_words, parameters.world_seed
        wanted |= {"world_words": words, "world_seed": seed}
        return wanted, f"embedded world, {words} words, seed {seed}"
    if parameters.source == "folder":
        folder = files.resolve(parameters.data)
        paths = parquet_files(folder / "corpus")
        wanted["files"] = {path.name: files.sha256(path) for path in paths}
        return wanted, f"folder {folder.name}/corpus"
    revision = hub_revision(HUB_NAME)
    wanted |= {"name": HUB_NAME, "revision": revision}
    return wanted, f"{HUB_NAME} at {revision[:7]}"


def _source(parameters: config.Data, wanted: dict[str, Any]) -> Iterator[str]:
    if parameters.source == "embedded":
        return synthetic.documents(
            parameters.documents, parameters.world_words, parameters.world_seed
        )
    if parameters.source == "folder":
        paths = parquet_files(files.resolve(parameters.data) / "corpus")
        return (text for path in paths for text in read_file(path))
    return _hub(wanted["revision"])


def hub_revision(name: str) -> str:
    """The commit that a data set of the Hub stands at today.

    Raises:
        UserError: Without a network, in one line that names the other sources.
    """
    from huggingface_hub import HfApi

    with reaching_hub(name):
        commit = HfApi().dataset_info(name, timeout=10).sha
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"{commit!r:.20} is no commit")
        return commit


@contextmanager
def reaching_hub(name: str) -> Iterator[None]:
    """Turns whatever goes wrong between here and the Hub into a line that names what else to use.

    Raises:
        UserError: In place of any error inside.
    """
    try:
        yield
    except Exception as error:  # the clients raise many kinds: sockets, proxies, HTTP, JSON, Arrow
        raise UserError(
            f"source = 'hub': cannot reach the Hugging Face Hub for {name} "
            f"({type(error).__name__}); use source = 'embedded', or source = 'folder' with data ="
        ) from None


def _hub(revision: str) -> Iterator[str]:
    from datasets import load_dataset

    with reaching_hub(HUB_NAME):
        try:
            stream = load_dataset(HUB_NAME, split="train", streaming=True, revision=revision)
        except RuntimeError:  # the main branch holds a script; the Hub keeps a Parquet copy
            stream = load_dataset(
                HUB_NAME, split="train", streaming=True, revision="refs/convert/parquet"
            )
        texts = (row["text"] or "" for row in stream)
    while True:
        with reaching_hub(HUB_NAME):
            text = next(texts, None)
        if text is None:
            return
        yield text


def lengths(documents: list[str]) -> pd.DataFrame:
    """Words per document, for :func:`helpers.plots.lengths`: columns name and length."""
    return pd.DataFrame({"name": "documents", "length": [len(text.split()) for text in documents]})
