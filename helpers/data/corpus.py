"""Documents of the pre-training corpus, from one of three sources, as Parquet with a manifest."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field

from helpers.base import config, files, progress
from helpers.base.errors import UserError, did_you_mean, one_line
from helpers.data import hub, synthetic

HUB_NAME = "Skylion007/openwebtext"
SHARD = (20_000, 64_000_000)  # documents and characters of a file, at most
SCHEMA = pa.schema([("text", pa.string())])
SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")
SOURCE = "source.yaml"
HELD_OUT = "held_out"  # folder beside the documents that are trained on
HELD_OUT_BYTES = 4_000_000  # kept of them; what is above is neither kept nor trained on


def _one_line(value: object) -> object:
    return " ".join(value.split()) if isinstance(value, str) else value


Paragraph = Annotated[config.Plain, Field(max_length=1000), BeforeValidator(_one_line)]


class Description(config.Strict):
    """What a data folder says of itself in its ``source.yaml``; text from outside."""

    name: config.Plain = Field(max_length=60, description="the corpus, in a word or two")
    composition: Paragraph = Field(description="what it is made of")
    licence: Paragraph = Field(description="of its parts; unknown where it is")
    warnings: list[Paragraph] = Field(
        default=[], max_length=20, description="what a reader of its scores must know"
    )
    tasks: dict[str, Paragraph] = Field(default={}, description="a note by task of glue/")


def describe(folder: Path) -> dict[str, Any]:
    """The fields of a data folder's ``source.yaml``; empty where it has none."""
    path = folder / SOURCE
    if not (path.exists() or path.is_symlink()):
        return {}
    found = config.validate(Description, config.read_yaml(path), str(path))
    there = [place.name for place in files.visible(folder, "glue/*")]
    for task in found.tasks:
        if task not in there:
            hint = did_you_mean(task, there)
            raise UserError(f"{path}: tasks.{task[:40]}: no such folder of glue/; {hint}")
    return found.model_dump()


def run(parameters: config.Data) -> dict[str, Any]:
    """Brings the corpus into the run's folder, ``data/corpus/``; does nothing twice.

    A hundredth of the documents, and of the first ones a fifth until that makes 200 kB, is held out
    in ``held_out/``: never trained on, chosen by a hash of the text, the same for every tokenizer.
    The manifest it returns holds source, name, documents, words, bytes (UTF-8), skipped (empty
    documents), held_out and ``content``, the SHA-256 of all texts; for source ``hub`` also
    ``shards``, the files read, and for source ``folder`` what `describe` gives. Where that or the
    name alone has changed, the manifest is brought up to date and nothing is made again. A corpus
    of the Hub stays at its commit, and one that was cut off goes on from the Hub's cache.
    """
    wanted, name, texts, shards = _origin(parameters)
    about = {"name": name}
    if parameters.source == "folder":
        about["description"] = describe(files.resolve(parameters.data))
        about["name"] = about["description"].get("name", name)
    folder = parameters.folder / "data" / "corpus"
    if done := files.intact_manifest(folder, files.digest(wanted)):
        if about.items() <= done.items():
            return done
        return files.write_manifest(folder, {**done, **about}, list(done["files"]))
    texts = islice(texts, parameters.documents or None)
    with files.building(folder) as empty:
        counts, written = _write(texts, parameters.documents, empty)
        if not counts["documents"]:
            raise UserError(f"source = {parameters.source!r}: {name} has no document with text")
        manifest = {"spec": files.digest(wanted), "specification": wanted, **about}
        manifest |= counts | {"source": parameters.source}
        manifest |= {"shards": shards} if shards else {}
        return files.write_manifest(empty, manifest, written)


def finished(parameters: config.Data) -> dict[str, Any] | None:
    """What :func:`run` gives where that is done, else None; the source itself is not read."""
    manifest = files.find_manifest(parameters.folder / "data" / "corpus")
    return manifest if manifest and follows(manifest["specification"], parameters) else None


def follows(specification: dict[str, Any], parameters: config.Data) -> bool:
    """Whether what a manifest specifies agrees with every parameter of the same name."""
    return all(getattr(parameters, key, value) == value for key, value in specification.items())


def _write(texts: Iterable[str], total: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Writes texts as Parquet; what a manifest tells of them, and the names of the files."""
    content, written = hashlib.sha256(), []
    counts: dict[str, Any] = {"documents": 0, "words": 0, "bytes": 0, "skipped": 0}
    held_out = _HeldOut()
    bar = progress.bar(total, "corpus", "documents")
    for shard in portions(texts, *SHARD):
        texts = [text for text in shard if text and text.strip()]
        documents = []
        for text in texts:
            data = text.encode("utf-8", "replace")
            content.update(len(data).to_bytes(8, "big") + data)
            if not held_out.takes(text, data):
                documents.append(text)
                counts["bytes"] += len(data)
                counts["words"] += len(text.split())
        counts["documents"] += len(documents)
        counts["skipped"] += len(shard) - len(texts)
        written.append(f"part-{len(written):05d}.parquet")
        _write_texts(folder / written[-1], documents)
        bar.update(len(shard))
    bar.close()
    written.append(f"{HELD_OUT}/part-00000.parquet")
    _write_texts(folder / written[-1], held_out.texts)
    counts |= {"held_out": {"documents": held_out.documents, "bytes": held_out.bytes}}
    return counts | {"content": content.hexdigest()}, written


def _write_texts(path: Path, texts: list[str]) -> None:
    with files.replacing(path) as temporary:
        pq.write_table(pa.table({"text": texts}, SCHEMA), temporary, compression="zstd")


class _HeldOut:
    """The documents of a stream that are held out."""

    def __init__(self) -> None:
        self.documents, self.bytes, self.texts, self.trained = 0, 0, [], b""
        self.seen: set[bytes] = set()  # of the first ones, so that a copy is not trained on

    def takes(self, text: str, data: bytes) -> bool:
        """Whether a document, and its UTF-8, is held out; then it is kept."""
        digest = hashlib.blake2b(data, digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        first = self.bytes < 200_000
        self.trained = self.trained or digest  # the first of all, so that there is one
        out = place < 0.01 or digest in self.seen or (first and place < 0.2)
        if not out or digest == self.trained:
            return False
        if first:
            self.seen.add(digest)
        if self.bytes < HELD_OUT_BYTES:
            self.texts.append(text)
        self.documents, self.bytes = self.documents + 1, self.bytes + len(data)
        return True


def portions(texts: Iterable[str], documents: int, characters: int) -> Iterator[list[str]]:
    """Cuts a stream of texts into lists that memory can hold; a null counts as empty.

    A list ends with the document that makes up `documents`, or that reaches so many `characters`.
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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors in reading a Parquet file into a line that names it."""
    with one_line(f"{path}: not readable as Parquet"):
        files.refuse_pointer(path)
        yield


def read_file(path: Path) -> Iterator[str]:
    """The documents of one Parquet file, its column ``text``; a null becomes an empty text."""
    with reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if "text" not in schema.names:
            raise UserError(f"{path}: has no column text (it has {', '.join(schema.names)})")
        kind = schema.field("text").type
        if not is_text(kind):
            raise UserError(f"{path}: column text is {kind}; it must be a string")
        for batch in file.iter_batches(1024, columns=["text"]):
            batch.validate(full=True)  # that texts are UTF-8
            yield from (text or "" for text in batch.column(0).to_pylist())


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is text: a string type of any width, plain or as a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def check_names(names: list[str], where: str) -> None:
    """Refuses files that would give rows twice, or a part of them, as their names tell.

    ``train-00002-of-00080.parquet``, as the Hub names them, is one of eighty. A UserError begins
    with `where`, which the names are relative to.
    """
    sets: dict[tuple[str, str], set[str]] = {}  # the shards there, by stem and count
    stems: dict[str, str] = {}
    for name in names:
        if part := SHARD_NAME.fullmatch(name):
            stems[name] = part[1]
            sets.setdefault((part[1], part[3]), set()).add(name)
        if re.search(r"(^|/)partial-", name):
            raise UserError(
                f"{where}: {name}: the Hub converted a part of the data set; to use it as it is, "
                "rename its folder"
            )
    folders = sorted({name.rpartition("/")[0] for name in names})
    if len(folders) > 1:
        two = " and ".join(f"{folder or '.'}/" for folder in folders[:2])
        raise UserError(f"{where}: Parquet files in {two}; leave those of one folder there")
    for (stem, count), there in sets.items():
        shard = f"{stem}-*-of-{count}.parquet"
        beside = [n for n in names if n == f"{stem}.parquet" or n.startswith(f"{stem}-")]
        if others := [n for n in beside if n not in there and stems.get(n, stem) == stem]:
            raise UserError(f"{where}: {others[0]} beside {shard}; leave one set there")
        wanted = [f"{stem}-{number:05d}-of-{count}.parquet" for number in range(int(count))]
        if missing := [name for name in wanted if name not in there]:
            raise UserError(
                f"{where}: {shard}: {len(missing)} of {len(wanted)} files are missing, the first "
                f"{missing[0]}; fetch them, or rename the rest"
            )


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a corpus, in the folder or in one below it, sorted; at least one."""
    paths = files.visible(folder, "**/*.parquet")
    if (folder / files.MANIFEST).exists():  # of a run's own
        paths = [path for path in paths if path.parent.name != HELD_OUT]
    if not paths:
        what = "holds no *.parquet" if folder.is_dir() else "no such folder"
        raise UserError(f"data: {folder}: {what}; source folder needs corpus/*.parquet")
    check_names([path.relative_to(folder).as_posix() for path in paths], f"data: {folder}")
    return paths


def _origin(parameters: config.Data) -> tuple[dict[str, Any], str, Iterator[str], list[str]]:
    """What the corpus follows from, its name for a reader, its texts, not yet read.

    Last a list of the Hub's files, which fills as they are read.
    """
    wanted: dict[str, Any] = {"source": parameters.source, "documents": parameters.documents}
    if parameters.source == "embedded":
        words, seed = parameters.world_words, parameters.world_seed
        wanted |= {"world_words": words, "world_seed": seed}
        texts = synthetic.documents(parameters.documents, words, seed)
        return wanted, f"embedded world, {words} words, seed {seed}", texts, []
    if parameters.source == "folder":
        folder = files.resolve(parameters.data) / "corpus"
        found = {path: path.relative_to(folder).as_posix() for path in parquet_files(folder)}
        wanted["files"] = {name: files.sha256(path) for path, name in found.items()}
        return wanted, f"folder {folder.parent.name}/corpus", read(folder), []
    commit = hub.pinned([parameters.folder / "data" / "corpus"]) or hub.listing(HUB_NAME)[0]
    wanted |= {"name": HUB_NAME, "revision": commit}
    shards: list[str] = []
    return wanted, f"{HUB_NAME} at {commit[:7]}", _hub(commit, shards), shards


def _hub(commit: str, shards: list[str]) -> Iterator[str]:
    """The documents of the Hub's train split, file by file: each is whole before it is read."""
    names = hub.listing(HUB_NAME, commit)[1]
    names = sorted(n for n in names if re.fullmatch(r"(\w[^/]*/)*train[^/]*\.parquet", n))
    where = f"source = 'hub': {HUB_NAME} at {commit[:7]}"
    if not names:
        raise UserError(
            f"{where}: holds no train*.parquet (a copy that the Hub converts may end after 5 GB); "
            + hub.OTHERWISE
        )
    check_names(names, where)
    for name in names:
        path = hub.download(HUB_NAME, name, commit)
        shards.append(name)
        yield from read_file(path)
