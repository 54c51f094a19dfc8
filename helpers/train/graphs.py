"""Training steps as CUDA graphs: recorded once for each shape, then replayed.

A step of a small encoder is many small kernels, and Python takes longer to launch them than a large
GPU to run them. A graph launches them all at once; what a step computes stays the same.

Source: Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog, 2021.
"""

import os
from collections.abc import Callable, Hashable, Sequence

import torch

from helpers.base.errors import one_line

SWITCH = "SMALL_BENCH_CUDA_GRAPHS"  # 0 turns them off

Tensors = dict[str, torch.Tensor]


def possible(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether steps are replayed: on a GPU, unless float16's losses are scaled, which waits."""
    wanted = os.environ.get(SWITCH, "1") != "0"
    return wanted and device.type == "cuda" and dtype != torch.float16


class Replay:
    """A step that is recorded at the second call with a shape and replayed from then on.

    The first call of a shape runs as it is written, so that kernels are loaded and the optimiser
    has its moments. `step` takes tensors by name and a learning rate (a scalar tensor where it is
    recorded) and does all the work on its own: gradients do not outlive it, and what changes
    between calls comes in as a tensor. It may draw from torch's random numbers and `generators`.
    """

    def __init__(
        self,
        step: Callable[[Tensors, float | torch.Tensor], Tensors],
        active: bool,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.step, self.active, self.generators = step, active, generators
        self.seen: set[Hashable] = set()
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensors, Tensors]] = {}
        self.pool: tuple[int, int] | None = None

    def __call__(self, inputs: Tensors, rate: float) -> Tensors:
        """One step; what it returns is written over by the next."""
        if not self.active:
            return self.step(inputs, rate)
        device = next(iter(inputs.values())).device
        inputs = inputs | {"rate": torch.full((), rate, device=device)}
        key = tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())
        if key not in self.recorded:
            if key not in self.seen:
                self.seen.add(key)
                return self._run_apart(inputs)
            self._record(key, inputs)
        graph, recorded_inputs, outputs = self.recorded[key]
        for name, tensor in inputs.items():
            recorded_inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return outputs

    def _run(self, inputs: Tensors) -> Tensors:
        others = {name: tensor for name, tensor in inputs.items() if name != "rate"}
        return self.step(others, inputs["rate"])

    def _run_apart(self, inputs: Tensors) -> Tensors:
        """Runs the step on a stream of its own, as recording will."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            outputs = self._run(inputs)
        torch.cuda.current_stream().wait_stream(side)
        return outputs

    def _record(self, key: Hashable, inputs: Tensors) -> None:
        """Records the step for inputs of these shapes."""
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Where this fails, torch's generators and allocator stay as it left them: no way on.
        refused = f"the step cannot be recorded as a CUDA graph; run it again with {SWITCH}=0"
        recording = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
        with one_line(refused), recording:
            outputs = self._run(inputs)
        self.pool = graph.pool()
        self.recorded[key] = (graph, inputs, outputs)
