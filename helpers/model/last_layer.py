"""The last layer only at the tokens that are read afterwards.

What follows the attention of a post-LN encoder's last layer (a projection, two norms, the
feed-forward) treats every token by itself. Where a head reads a few of them, the others are cut off
there: values and gradients of those few are the same.
"""

from collections.abc import Callable

import torch
from torch import nn

POST_NORM = ("bert", "deberta", "electra", "roberta")  # model types whose layers are alike


def applies(encoder: nn.Module) -> bool:
    """Whether the last layer of an encoder can be cut."""
    return encoder.config.model_type in POST_NORM


def cut(
    encoder: nn.Module, choose: Callable[[torch.Tensor], torch.Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """From now on, or within it, the last layer goes on with the tokens that `choose` takes.

    `choose` maps float [batch, length, hidden] to float [batch, K, hidden].
    """
    after = encoder.encoder.layer[-1].attention.output
    return after.register_forward_pre_hook(lambda _, inputs: tuple(map(choose, inputs)))


def at(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [batch, length, width] at positions [batch, K]: [batch, K, width]."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
