"""What both training loops share: precision, schedule, and what keeps a run of days alive."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from helpers.base import config, progress
from helpers.base.errors import STOPS, Diverged, Preempted, UserError
from helpers.model import registry
from helpers.train import checkpoint

LATE = 1e6  # steps; 0.999 to this power is 0 in double precision
NEVER = torch.iinfo(torch.int64).max


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number format of a training run, and a sentence that says why."""
    if device.type == "cpu":
        if wanted == "float16":
            raise UserError(f"precision = {wanted!r}: on a CPU only auto, float32 or bfloat16")
        if wanted == "bfloat16":
            return torch.bfloat16, "bfloat16: as asked"
        return torch.float32, "float32: the CPU's own"
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted}: as asked"
    # is_bf16_supported() says yes to a T4, which only emulates it.
    major, minor = torch.cuda.get_device_capability(device)
    reason = f"compute capability {major}.{minor}"
    if major >= 8:
        return torch.bfloat16, f"bfloat16: {reason}"
    return torch.float16, f"float16 with loss scaling: {reason} < 8.0"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a model is called."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


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
    """Prepares this process: CPU threads, memory, and no progress bars but our own."""
    torch.set_num_threads(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_memory()
    quiet()


def _keep_memory() -> None:
    """Has glibc keep what is freed: the next step asks for as much, and fresh pages are slow."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block outside the heap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap never shrinks


def quiet() -> None:
    """Keeps transformers from reporting on the weights it loads."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # a fresh head is meant, and no news


def schedule(
    step: int, warmup: int, total: int, end: float = 0.0, ramp_times_decay: bool = False
) -> float:
    """Factor on the peak learning rate: linear warm-up, then linear decay to `end`.

    With `ramp_times_decay` the decay begins with the first step and the warm-up is a factor on it.
    The sources count the warm-up's steps from 0, and so waste the first batch; here from 1.

    >>> [schedule(step, warmup=2, total=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> [schedule(step, warmup=2, total=4, ramp_times_decay=True) for step in range(4)]
    [0.5, 0.75, 0.5, 0.25]
    """
    ramp = min(1.0, (step + 1) / max(1, warmup))
    if ramp_times_decay:
        return ramp * (end + (1 - end) * (total - step) / total)
    return ramp if step < warmup else end + (1 - end) * (total - step) / max(1, total - warmup)


def recipe(parameters: config.Pretrain | config.Finetune) -> registry.Recipe:
    """The recipe of the parameters' model, with what the profile sets for all."""
    own = registry.get(parameters.model).recipe
    return replace(own, bias_correction=True) if parameters.bias_correction == "always" else own


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: to matrices, not to biases and norms."""
    return parameter.ndim > 1 and "norm" not in name.lower()


def make_adamw(
    groups: list[dict[str, Any]], recipe: registry.Recipe, capturable: bool = False
) -> torch.optim.AdamW:
    """AdamW as a recipe has it, at rate 0.

    Without bias correction (``AdamWeightDecayOptimizer`` of google-research/electra,
    ``model/optimization.py``) torch's own counts its steps from LATE, where beta ** step is 0 and
    nothing is left to correct.
    """
    settings = {"betas": recipe.betas, "eps": recipe.epsilon, "capturable": capturable}
    optimiser = torch.optim.AdamW(groups, lr=0.0, fused=True, **settings)
    if not recipe.bias_correction:
        for parameter in (p for group in optimiser.param_groups for p in group["params"]):
            optimiser.state[parameter] = {
                "step": torch.full((), LATE, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimiser


def clip(parameters: Iterable[nn.Parameter], norm: float) -> torch.Tensor:
    """Clips gradients to a total L2 norm; returns the norm before, a scalar tensor."""
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


class Upkeep:
    """Keeps a training loop alive: resume, checkpoints, signals, a watch on the loss, time.

    `state` are the JSON values of a fresh run, or those of the checkpoint that was found in
    `folder` (None for none): ``step``, ``seconds``, ``scaler`` and the loop's own;
    ``spec`` is the digest that a checkpoint must have been written under. `run` names the run in an
    error line, `rate` the parameter that holds its learning rate.
    """

    def __init__(
        self,
        parameters: config.Pretrain | config.Finetune,
        step: Any,  # noqa: ANN401
        state: dict[str, Any],
        total: int,
        folder: Path | None,
        bar: progress.Progress | None,
        run: str,
        rate: str,
    ) -> None:
        model = self.model = step.model
        optimiser, scaler = self.optimiser, self.scaler = step.optimiser, step.scaler
        self.total, self.folder, self.bar, self.run = total, folder, bar, run
        self.rate = f"{rate} = {getattr(parameters, rate)}"
        fresh = {"step": 0, "seconds": 0.0, "scaler": {}} | state
        saved = checkpoint.load(folder, state["spec"], model, optimiser) if folder else None
        self.state = fresh | (saved or {})
        if self.state["scaler"]:
            scaler.load_state_dict(self.state["scaler"])
        if bar is not None and self.state["step"]:
            bar.skip(self.state["step"])
            bar.refresh()  # says where it goes on
        self.timer = checkpoint.Timer(parameters.checkpoint_steps, parameters.checkpoint_minutes)
        self.device = next(model.parameters()).device
        self.broken = torch.full((), NEVER, device=self.device)  # first step with a loss not finite
        self.asked = 0  # the signal that told it to end
        self.began = time.perf_counter() - self.state["seconds"]

    @contextmanager
    def steps(self) -> Iterator[range]:
        """The steps that are left; on SIGTERM or Ctrl-C a checkpoint is saved before it ends."""

        def ask(number: int, _: object) -> None:
            self.asked = number

        # Outside the main thread signals cannot be caught.
        catches = threading.current_thread() is threading.main_thread() and self.folder is not None
        before = {n: signal.signal(n, ask) for n in STOPS} if catches else {}
        try:
            yield range(self.state["step"], self.total)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:  # the loop had come to its end: what was asked still holds
            signal.raise_signal(self.asked)
        self.note()
        if bad := checkpoint.not_finite(dict(self.model.named_parameters())):
            self.diverged(f"{bad} is not finite after step {self.total}")

    def see(self, loss: torch.Tensor) -> None:
        """Counts a step and looks at its loss, a scalar tensor, without a wait for the device."""
        self.state["step"] += 1
        now = self.broken.clamp(max=self.state["step"])
        self.broken = torch.where(loss.detach().isfinite(), self.broken, now)

    def check(self) -> None:
        """Stops a run of which a loss was not finite; waits for the device."""
        # Under a loss scaler, steps whose gradients overflow are skipped: no reason to stop.
        if (step := int(self.broken)) != NEVER:
            self.diverged(f"the loss is not finite at step {step}")

    def diverged(self, what: str) -> None:
        """Raises the error of a run that diverges."""
        there = f"; {checkpoint.last(self.folder, self.state['spec'])}" if self.folder else ""
        raise Diverged(
            f"{self.rate}: {self.run} diverges, {what}; lower the rate or lengthen the warm-up "
            f"(it begins anew; pre-training asks to delete its checkpoints first){there}"
        )

    def note(self) -> None:
        """Brings the state up to now."""
        self.state["seconds"] = time.perf_counter() - self.began
        self.state["scaler"] = self.scaler.state_dict()

    def maybe_save(self, tokens: int, hold: bool = False) -> None:
        """After a step over so many tokens: moves the bar, and saves where a checkpoint is due."""
        step = self.state["step"]
        due = self.timer.due(step) and not hold
        if self.folder and step < self.total and (due or self.asked):
            self.note()
            self.check()
            checkpoint.save(self.folder, self.model, self.optimiser, self.state)
            if self.asked:
                stopped = f"stopped, saved at step {step}; run it again to go on"
                raise Preempted(f"{self.run}: {stopped}")
        if self.bar is not None:
            self.bar.tokens += tokens
            self.bar.update()
