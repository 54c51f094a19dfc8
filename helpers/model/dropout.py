"""Dropout on a CPU from 16 random bits an element: a quarter of the time of torch's own.

torch draws a Bernoulli variable for every element, which takes a fifth of a small model's step in
bfloat16. One 64-bit draw is enough for four elements. On a GPU torch's own is used.

Attention weights are dropped inside torch's scaled dot-product attention, out of a module's reach;
:func:`attend` stands in for it under a name of its own in transformers' table of attentions.

Source: Srivastava et al. 2014, section 4 (inverted: survivors are scaled up in training).
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LEVELS = 2**16  # the rate is rounded to a multiple of 1 / LEVELS
ATTENTION = "sdpa_cheap_dropout"  # transformers' name for attend()


def drop(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Zeroes elements with probability `rate` and scales the others, so that means stay.

    `values` is a float tensor on the CPU. Bits come from torch's global generator, one thread's
    worth: the result does not depend on the number of threads.
    """
    level = round(rate * LEVELS)
    if level == 0:
        return values
    if level == LEVELS:
        return values * 0
    # One draw of 64 bits is four of 16, each uniform from -LEVELS / 2 to LEVELS / 2 - 1.
    count = values.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(values.shape)
    # An element stays where its draw reaches the level. As 0 or 1: bool takes ten times as long.
    torch.ge(bits, level - LEVELS // 2, out=bits)
    return values * bits.to(values.dtype).mul_(LEVELS / (LEVELS - level))


class Dropout(nn.Dropout):
    """``nn.Dropout`` that calls :func:`drop` for tensors on a CPU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As ``nn.Dropout``."""
        if values.device.type != "cpu":
            return super().forward(values)
        return drop(values, self.p) if self.training else values


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Transformers' ``sdpa`` attention; on a CPU by plain products and :func:`drop`.

    torch's fused attention takes four times as long there in bfloat16.
    Query, key and value are float [batch, heads, L, width], the mask bool [batch, 1, L, L], true
    where a query may read a key. Fewer heads, a causal order or a bias are left to ``sdpa``.

    Gives float [batch, L, heads, width], and None in place of the weights.
    """
    ours = query.device.type == "cpu"
    if not (ours and _is_plain(module, query, key, attention_mask, others)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = drop(scores.softmax(-1).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _is_plain(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    others: dict[str, object],
) -> bool:
    """Whether scores are products alone, and a boolean mask all that hides a key from a query."""
    biased = any(others.get(name) is not None for name in ("position_bias", "softcap"))
    if biased or query.shape[1] != key.shape[1]:
        return False
    if mask is not None:
        return mask.dtype == torch.bool
    causal = others.get("is_causal")
    return not (getattr(module, "is_causal", True) if causal is None else causal)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_fast_dropout(model: nn.Module) -> nn.Module:
    """Exchanges every ``nn.Dropout`` and ``sdpa`` attention inside `model`, and returns it.

    Parameters, their names and ``save_pretrained`` are unchanged.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
        if isinstance(parent, PreTrainedModel) and parent.config._attn_implementation == "sdpa":
            parent.set_attn_implementation(ATTENTION)
    return model
