"""A run's state in a few small files, to go on from on another machine.

What is cheap to make again stays behind: data, tokenizers, packed corpus, encoders whose
fine-tuning is finished. Records, predictions, logs, executed notebooks, encoders still to be
fine-tuned and the newest checkpoints travel, as far as the limit allows.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load, save

from helpers import checkpoint, files
from helpers.config import UserError

SMALL = (
    "records/*/*/*.json",
    "records/*/*/*.parquet",
    "models/*/log.csv",
    "notebooks/*.ipynb",
)
TOPS = ("records", "models", "notebooks", "checkpoints")
CHECKPOINTS = ("models/*/checkpoint-*", "checkpoints/*/*/*/checkpoint-*")  # of both trainings
WEIGHTS = "encoder/model.safetensors"


def pack(run: Path, out: Path, limit: int, piece: int, finished: Collection[str]) -> list[str]:
    """Writes a run's state to ``carry-<n>`` and ``carry.json``; what lay there is replaced.

    Args:
        run: The run's folder.
        out: Where the pieces go.
        limit: Bytes of all pieces.
        piece: Bytes of one.
        finished: Models whose fine-tunings are all done: their encoders stay behind.

    Returns:
        A line for everything that is rounded or left behind.

    Raises:
        UserError: When not even the records fit, or the pieces cannot be written.
    """
    content = {
        path.relative_to(run).as_posix(): path.read_bytes()
        for pattern in SMALL
        for path in sorted(run.glob(pattern))
    }
    said, room = [], limit - 2**16
    room -= sum(_compressed(data) for data in content.values())
    if room < 0:
        raise UserError(f"limit = {limit} bytes: the records need {limit - room}")
    for manifest in sorted(run.glob("models/*/manifest.json")):
        model = manifest.parent
        if model.name in finished:
            content[f"models/{model.name}/manifest.json"] = manifest.read_bytes()
            continue
        added, line = _encoder(model, room)
        room -= sum(_compressed(data) for data in added.values())
        content |= {f"models/{model.name}/{name}": data for name, data in added.items()}
        said += [line] if line else []
    found = (path.parent for pattern in CHECKPOINTS for path in run.glob(pattern))
    for folder in sorted(set(found)):
        place = folder.relative_to(run).as_posix()
        added, line = _checkpoint(folder, out, room)
        room -= sum(_compressed(data) for data in added.values())
        content |= {f"{place}/{name}": data for name, data in added.items()}
        said.append(f"{place}: {line}")
    _split(content, out, piece, said)
    return said


def unpack(folder: Path, run: Path) -> list[str]:
    """Puts what :func:`pack` wrote into a run's folder; a model that is finished there stays.

    Args:
        folder: Holds the pieces.
        run: The run's folder, made if need be.

    Returns:
        What :func:`pack` said of it.

    Raises:
        UserError: When a piece is missing or damaged, or holds what does not belong in a run.
    """
    about = files.read_json(folder / "carry.json")
    try:
        data = b"".join((folder / name).read_bytes() for name in about["pieces"])
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise UserError(f"{folder}: its pieces are damaged; copy them again")
    here = {path.parent.name for path in run.glob("models/*/manifest.json")}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # Manifests last: what they vouch for is there before them.
        for name in sorted(archive.namelist(), key=lambda n: (n.endswith("manifest.json"), n)):
            top, *rest = Path(name).parts
            if top not in TOPS or ".." in rest:
                raise UserError(f"{folder}: holds {name!r}, which belongs in no run")
            old = (run / name).exists() and "checkpoint-" in name
            if old or (top == "models" and rest[0] in here and "checkpoint-" not in name):
                continue
            with files.replacing(run / name) as temporary:
                temporary.write_bytes(archive.read(name))
    return about["lost"]


def _compressed(data: bytes) -> int:
    """Bytes in the archive, with its entry's head."""
    return len(zlib.compress(data, 1)) + 400


def _encoder(model: Path, room: int) -> tuple[dict[str, bytes], str]:
    """Files of a finished encoder, and a line where there is no room for them."""
    manifest = files.read_json(model / "manifest.json")
    content = {name: (model / name).read_bytes() for name in manifest["files"]}
    content["manifest.json"] = (model / "manifest.json").read_bytes()
    if sum(_compressed(data) for data in content.values()) <= room:
        return content, ""
    return {}, f"{model.name}: encoder left behind, it will be pre-trained again"


def settle(model: Path, room: int) -> str:
    """Rounds a finished encoder to bfloat16, in place, if it could not travel otherwise.

    It is done before the first fine-tuning, so that all records of a model are of one encoder. The
    file keeps its float32 format; half of its bits are zero and are squeezed out by :func:`pack`.

    Args:
        model: Folder of the model, with its manifest.
        room: Bytes that the encoder may have on its way.

    Returns:
        A line that says so, or an empty one.
    """
    path = model / WEIGHTS
    if _compressed(path.read_bytes()) <= room:
        return ""
    tensors = load(path.read_bytes())
    rounded = {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}
    manifest = files.read_manifest(model / files.MANIFEST)
    files.unseal(model)
    with files.replacing(path) as temporary:
        temporary.write_bytes(save(rounded, metadata={"format": "pt"}))
    files.seal(model, {k: v for k, v in manifest.items() if k != "files"}, list(manifest["files"]))
    return f"{model.name}: encoder rounded to bfloat16"


def _checkpoint(folder: Path, out: Path, room: int) -> tuple[dict[str, bytes], str]:
    """The newest checkpoint in its light form, and a line about what is lost."""
    try:
        lost = checkpoint.lighten(folder, out, room)
    except UserError as error:
        return {}, f"checkpoint left behind ({error})"
    path = max(out.glob("checkpoint-*.safetensors"))
    content = {path.name: path.read_bytes()}
    path.unlink()
    return content, f"checkpoint with {lost}"


def _split(content: dict[str, bytes], out: Path, piece: int, said: list[str]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 1)
    data = buffer.getvalue()
    sha256, names = hashlib.sha256(data).hexdigest(), []
    for start in range(0, len(data), piece):
        names.append(f"carry-{sha256[:8]}-{len(names):02d}")
        with files.replacing(out / names[-1]) as temporary:
            temporary.write_bytes(data[start : start + piece])
    files.write_json(out / "carry.json", {"pieces": names, "sha256": sha256, "lost": said})
    for old in out.glob("carry-*"):
        if old.name not in names:
            old.unlink()
