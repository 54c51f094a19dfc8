"""Training state on disk: the last two checkpoints of a run, each one file that proves itself.

A file holds tensors in safetensors, the rest as JSON beside them, and a SHA-256 over both. What was
damaged is noticed when it is read, and the checkpoint before is taken.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from helpers.base import config, files
from helpers.base.errors import Diverged, UserError
from helpers.data import tokenizer

Tensors = Mapping[str, torch.Tensor]
KEPT = 2
PARAMETERS = ("checkpoint_steps", "checkpoint_minutes", "checkpoints")
"""Parameters that say when and where; nothing that is computed follows from them."""


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict) -> Path:
    """Writes ``checkpoint-<spec>-<step>.safetensors`` atomically; removes all but the last two.

    Shared parameters are written once, a fused Adam's moments by parameter name, with them `state`,
    JSON values among which are ``step`` and ``spec``. Where a weight or moment is not finite, or
    the disk is full, the files before stay.
    """
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach()
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    if bad := not_finite(tensors):
        raise Diverged(
            f"{bad} is not finite after step {state['step']}: lower the learning rate (training "
            f"then begins anew); {last(folder, state['spec'])}"
        )
    path = folder / f"checkpoint-{state['spec'][:12]}-{state['step']:09d}.safetensors"
    text = json.dumps(state)
    with files.replacing(path) as temporary, tokenizer.saving():
        save_file(tensors, temporary, metadata={"state": text, "digest": _digest(text, tensors)})
    newest = _all(folder, state["spec"])[:KEPT]
    for old in folder.glob("checkpoint-*.safetensors"):
        if old not in newest:  # older ones, and what another specification left
            old.unlink(missing_ok=True)
    return path


def not_finite(tensors: Tensors) -> str:
    """The name of the first tensor that holds a NaN or an infinity; empty when none does."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def last(folder: Path, spec: str) -> str:
    """Which checkpoint there is, for an error line."""
    paths = _all(folder, spec)
    if not paths:
        return "no checkpoint was due before"
    return f"the checkpoint of step {int(paths[0].stem.rpartition('-')[2])} is kept in {folder}"


def _all(folder: Path, spec: str) -> list[Path]:
    """Checkpoints of a specification, the newest first."""
    return sorted(folder.glob(f"checkpoint-{spec[:12]}-*.safetensors"), reverse=True)


def holds_only_others(folder: Path, spec: str) -> bool:
    """Whether a folder holds checkpoints, and none of them of this specification."""
    return any(folder.glob("checkpoint-*.safetensors")) and not _all(folder, spec)


def _digest(text: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(
    folder: Path, spec: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restores model and optimiser from the newest checkpoint that is whole; returns its state.

    None without any of this specification; where all are damaged, a :class:`UserError`.
    """
    broken = ""
    for path in _all(folder, spec):
        try:
            state, tensors = _read(path)
            _restore(tensors, model, optimiser)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            broken = f"{path}: damaged checkpoint ({' '.join(str(error).split())[:120]})"
            warnings.warn(f"{broken}; the one before is taken", stacklevel=2)
            continue
        return state
    if broken:
        raise UserError(f"{broken}; none before it is whole: delete it to begin again")
    return None


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if about.get("digest") != _digest(about["state"], tensors):
        raise ValueError("its checksum does not hold")
    if bad := not_finite(tensors):
        raise ValueError(f"{bad} is not finite")
    return json.loads(about["state"]), tensors


@torch.no_grad()
def _restore(tensors: Tensors, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"model.{name}"])
        if f"step.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            moments = {key: moment.to(parameter.device) for key, moment in moments.items()}
            optimiser.state[parameter] = moments


def folder_of(parameters: config.Stage, stage: str, name: str, folder: Path) -> Path:
    """Where a run of a stage keeps its checkpoints: `folder`, or below the one it was told of."""
    if not parameters.checkpoints:
        return folder
    return files.resolve(parameters.checkpoints) / parameters.profile / stage / name


def clear(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    for path in folder.glob("checkpoint-*.safetensors"):
        path.unlink(missing_ok=True)


class Timer:
    """Says when a checkpoint is due: every so many steps and, unless 0, so many minutes."""

    def __init__(self, steps: int, minutes: float) -> None:
        self.steps, self.seconds, self.last = steps, 60 * minutes, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is due after `step` steps; starts the time anew when it is."""
        now = time.monotonic()
        due = step % self.steps == 0 or (0 < self.seconds <= now - self.last)
        self.last = now if due else self.last
        return due
