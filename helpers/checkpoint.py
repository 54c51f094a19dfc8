"""Training state on disk: tensors in safetensors, the rest as JSON inside the same file."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from helpers.config import UserError
from helpers.files import replacing


def save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Writes one file that holds weights, optimiser moments and `state`, atomically.

    Args:
        path: File to write.
        model: Shared parameters are written once.
        optimiser: A fused Adam; its moments are written by parameter name.
        state: JSON values: step, specification, log.

    Raises:
        UserError: When the disk is full or read-only; the file before stays.
    """
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach()
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load(
    path: Path, spec: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restores what :func:`save` wrote.

    Args:
        path: Checkpoint file; may be missing.
        spec: Digest the checkpoint must have been written under.
        model: Takes the weights.
        optimiser: Takes the moments.

    Returns:
        The state, or None when there is no checkpoint or it belongs to another specification.

    Raises:
        UserError: When the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["spec"] != spec:
                return None
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(file.get_tensor(f"model.{name}"))
                    moments = {}
                    for key in ("step", "exp_avg", "exp_avg_sq"):
                        if f"{key}.{name}" in file.keys():  # noqa: SIM118 (no mapping)
                            moments[key] = file.get_tensor(f"{key}.{name}").to(parameter.device)
                    if moments:
                        optimiser.state[parameter] = moments
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged checkpoint; delete it to begin again ({error})") from None
    return state
