"""What both training loops share: precision, schedule, optimiser, hardware and versions."""

import contextlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
import transformers
from torch import nn

from helpers.base.errors import UserError

RESIDENT_SHARE = 0.25  # of a GPU's free memory may hold the packed corpus


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number format of a training run, with the reason.

    Args:
        wanted: ``auto`` or a format.
        device: Where the run takes place.

    Returns:
        dtype and a sentence that says why.

    Raises:
        UserError: For float16 on a CPU.
    """
    if device.type == "cpu":
        if wanted == "float16":
            raise UserError(f"precision = {wanted!r}: on a CPU only auto, float32 or bfloat16")
        if wanted == "bfloat16":
            return torch.bfloat16, "bfloat16: as asked"
        return torch.float32, "float32: the CPU's own"
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted}: as asked"
    # is_bf16_supported() says yes to a T4, which only emulates it.
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16, f"bfloat16: compute capability {capability[0]}.{capability[1]}"
    return torch.float16, (
        f"float16 with loss scaling: compute capability {capability[0]}.{capability[1]} < 8.0"
    )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """The context in which a model is called."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def choose_place(size: int, device: torch.device) -> tuple[bool, str]:
    """Whether the packed corpus is copied to the device, with the reason.

    Args:
        size: Its bytes.
        device: Where the run takes place.
    """
    if device.type == "cpu":
        return False, "memory map: the CPU reads it"
    free, _ = torch.cuda.mem_get_info(device)
    share = f"{size / 2**30:.2f} GiB of {free / 2**30:.1f} free"
    if size <= free * RESIDENT_SHARE:
        return True, f"on the device: {share}"
    return False, f"memory map: {share} on the device, more than {RESIDENT_SHARE:.0%}"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device; a GPU gets it from pinned memory, without a wait."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def wait(device: torch.device) -> None:
    """Returns when the device has done what it was given; for timings."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def begin(threads: int) -> None:
    """Prepares this process: CPU threads, and no progress bars but our own."""
    torch.set_num_threads(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet()


def quiet() -> None:
    """Keeps transformers from reporting on the weights it loads."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # a fresh head is meant, and no news


def schedule(step: int, warmup: int, total: int, end: float = 0.0) -> float:
    """Factor on the peak learning rate: linear warm-up, then linear decay.

    Args:
        step: Steps already taken.
        warmup: Steps of warm-up.
        total: Steps in all.
        end: Factor that the decay ends at; 1 is no decay.
    """
    if step < warmup:
        return (step + 1) / warmup
    return end + (1 - end) * (total - step) / max(1, total - warmup)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: matrices yes, biases and norms no."""
    return parameter.ndim > 1 and "norm" not in name.lower()


def clip(parameters: Iterable[nn.Parameter], norm: float) -> torch.Tensor:
    """Clips gradients to a total L2 norm; returns the norm before, a scalar tensor."""
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


class Watch:
    """Remembers the first step whose loss was not finite, without a wait for the device.

    Args:
        device: Where the losses live.
    """

    def __init__(self, device: torch.device) -> None:
        self.never = torch.iinfo(torch.int64).max
        self.first = torch.full((), self.never, device=device)

    def see(self, loss: torch.Tensor, step: int) -> None:
        """Takes the loss of a step, a scalar tensor."""
        self.first = torch.where(loss.detach().isfinite(), self.first, self.first.clamp(max=step))

    def step(self) -> int | None:
        """The first such step, or None; waits for the device."""
        found = int(self.first)
        return None if found == self.never else found
