"""The two objectives: masked language modelling and replaced-token detection."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import ElectraForPreTraining
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base.errors import UserError
from helpers.model import disentangled, last_layer, registry
from helpers.model.dropout import use_fast_dropout
from helpers.model.flops import head_flops, token_flops

DISCRIMINATOR = {"bert": ElectraForPreTraining, "deberta": disentangled.Discriminator}


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask: int  # id of the mask token
    special: torch.Tensor  # bool [vocabulary], True where a token is never masked
    ordinary: torch.Tensor  # int64, the ids that a random replacement is drawn from
    separator: int = -1  # id of the token that ends a segment; -1: rows have one segment

    @classmethod
    def of(cls, tok: Tokenizer, device: torch.device, segments: int = 2) -> "Vocabulary":
        """Reads it from a transformers tokenizer; `segments` are those of a packed row."""
        special = torch.zeros(len(tok), dtype=torch.bool)
        # An unknown word is a token like any other, as in google-research/electra.
        special[[i for i in tok.all_special_ids if i != tok.unk_token_id]] = True
        ordinary = torch.arange(len(tok))[~special]
        separator = tok.sep_token_id if segments == 2 else -1  # else it stands between documents
        return cls(tok.mask_token_id, special.to(device), ordinary.to(device), separator)


class Masked(NamedTuple):
    """A batch with a part of its tokens hidden; K = max(1, round(0.15 length))."""

    inputs: torch.Tensor  # int64 [batch, length], what the model reads
    types: torch.Tensor  # int64 [batch, length], 1 in a row's second segment
    positions: torch.Tensor  # int64 [batch, K], the chosen positions
    targets: torch.Tensor  # int64 [batch, K], the tokens that stood there
    weights: torch.Tensor  # float32 [batch, K], 1; 0 for filler in a row with few ordinary tokens


def mask_tokens(
    tokens: torch.Tensor,
    vocabulary: Vocabulary,
    masking: tuple[float, float],
    generator: torch.Generator,
) -> Masked:
    """Chooses 15 % of each row's ordinary tokens and hides them (dynamic masking).

    Tokens are int64 [batch, length], with the generator on one device; `masking` are the parts of
    the chosen ones that the mask and a random token replace.
    """
    device, (batch, length) = tokens.device, tokens.shape
    # Choose K positions of each row at random: the largest of random scores, specials last.
    count = max(1, round(registry.MASK_FRACTION * length))
    scores = torch.rand(batch, length, generator=generator, device=device)
    ordinary = ~vocabulary.special[tokens]
    positions = torch.where(ordinary, scores, -1.0).topk(count, dim=1).indices
    # A row with few ordinary tokens loses fewer than K; the rest of its positions are filler.
    wanted = ordinary.sum(1, keepdim=True) * registry.MASK_FRACTION
    wanted = wanted.round().clamp(1, count)
    rank = torch.arange(count, device=device)
    weights = ((rank < wanted) & ordinary.gather(1, positions)).float()
    targets = tokens.gather(1, positions)

    # Hide them: most behind the mask, some behind a random ordinary token, the others stay.
    draw = torch.rand(batch, count, generator=generator, device=device)
    ids = vocabulary.ordinary
    index = torch.randint(len(ids), (batch, count), generator=generator, device=device)
    mask, random = masking
    hidden = torch.where(draw < mask, vocabulary.mask, targets)
    swapped = (draw >= mask) & (draw < mask + random)
    hidden = torch.where(swapped, ids[index], hidden)
    hidden = torch.where(weights > 0, hidden, targets)
    # The second segment begins after the first separator.
    ends = (tokens == vocabulary.separator).long()
    types = (ends.cumsum(1) - ends).clamp(max=1)
    return Masked(tokens.scatter(1, positions, hidden), types, positions, targets, weights)


def corrupt(
    tokens: torch.Tensor, masked: Masked, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces the chosen tokens by samples of the generator's softmax, with torch's randomness.

    Draws one uniform number a token and inverts the cumulative distribution: the law of the
    released code's Gumbel maximum without its random number for every entry of the vocabulary.
    Takes tokens, int64 [batch, length], and logits, float [batch, K, vocabulary]; gives the
    corrupted tokens and the discriminator's labels, float32, 1 where they differ. A sample that
    happens to be the original counts as original (Clark et al. 2020, section 2).
    """
    # Sample: the first entry whose cumulative probability exceeds a uniform draw. The last sum
    # stands for 1, which rounding misses.
    cumulative = logits.detach().softmax(-1, dtype=torch.float32).cumsum(-1)
    last = cumulative[..., -1:]
    level = torch.rand(last.shape, device=logits.device) * last
    sampled = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
    sampled = sampled.clamp(max=logits.shape[-1] - 1)
    # Put the samples where tokens were chosen, and the original back at filler.
    sampled = torch.where(masked.weights > 0, sampled, masked.targets)
    corrupted = tokens.scatter(1, masked.positions, sampled)
    return corrupted, (corrupted != tokens).float()


def hidden_states(model: nn.Module, tokens: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Last hidden states, float [batch, length, hidden], of a model with a head.

    Tokens and their types are int64 [batch, length], without padding.
    """
    encoder = registry.encoder(model)
    if disentangled.is_fast(encoder):
        return disentangled.encode(encoder, tokens, types)
    return encoder(tokens, **_typed(encoder, types)).last_hidden_state


def _typed(model: nn.Module, types: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument for token types, of a model that tells two of them apart."""
    return {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) > 1 else {}


def masked_logits(model: nn.Module, masked: Masked) -> torch.Tensor:
    """Logits of one of transformers' ``...ForMaskedLM``, float [batch, K, vocabulary].

    They equal the model's own at the chosen positions of inputs without padding.
    """
    inputs, types, positions = masked.inputs, masked.types, masked.positions
    if hasattr(model, "generator_lm_head"):
        head = nn.Sequential(model.generator_predictions, model.generator_lm_head)
    else:
        head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    if head is None:  # an architecture that keeps it elsewhere: all logits, then the chosen
        return last_layer.at(model(inputs, **_typed(model, types)).logits, positions)
    if not last_layer.applies(encoder := registry.encoder(model)):
        return head(last_layer.at(hidden_states(model, inputs, types), positions))
    with last_layer.cut(encoder, lambda hidden: last_layer.at(hidden, positions)):
        return head(hidden_states(model, inputs, types))


class _CrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy in float32 that keeps its gradient in place of its logits.

    torch's own keeps a float32 copy of the logits and their logarithms: at 30,522 tokens that takes
    several percent of a small model's step. Losses end at 87 nats, where float32 has no smaller
    chance.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Logits [n, vocabulary], targets and weights [n]; a float32 scalar."""
        chances = logits.softmax(-1, dtype=torch.float32)
        targets = targets.unsqueeze(-1)
        right = chances.gather(-1, targets)
        # The gradient of the logits is softmax minus one at the target, times the weight: it takes
        # the place of the softmax. float16 has no room for it before the loss is scaled.
        gradient = chances.scatter_add_(-1, targets, torch.full_like(right, -1.0))
        ctx.dtype = logits.dtype
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        ctx.save_for_backward(gradient.mul_(weights.unsqueeze(-1)).to(dtype))
        tiny = torch.finfo(torch.float32).tiny
        return -(right.clamp(min=tiny).log().squeeze(-1) * weights).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream.to(gradient.dtype)).to(ctx.dtype), None, None


def masked_loss(logits: torch.Tensor, masked: Masked, chosen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the chosen tokens, a scalar in nats per token.

    Logits are float [batch, K, vocabulary]; `chosen`, a float32 scalar, counts them.
    """
    weights = masked.weights.flatten() / chosen
    return _CrossEntropy.apply(logits.flatten(0, 1), masked.targets.flatten(), weights)


def replaced_scores(model: nn.Module, corrupted: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """A discriminator's logits that a token was replaced, float32 [batch, length]."""
    return model.discriminator_predictions(hidden_states(model, corrupted, types)).float()


def replaced_loss(
    model: nn.Module, corrupted: torch.Tensor, types: torch.Tensor, replaced: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy of a discriminator, summed over what :func:`corrupt` gives, in nats."""
    score = replaced_scores(model, corrupted, types)
    return functional.binary_cross_entropy_with_logits(score, replaced, reduction="sum")


class MaskedLanguageModel(nn.Module):
    """The MLM objective over one of transformers' ``...ForMaskedLM`` classes."""

    def __init__(self, spec: registry.Spec, model: nn.Module) -> None:
        super().__init__()
        self.spec, self.model = spec, model

    def forward(self, tokens: torch.Tensor, masked: Masked) -> dict[str, torch.Tensor]:
        """The ``loss`` of a batch of tokens, int64 [batch, length], a scalar."""
        logits = masked_logits(self.model, masked)
        return {"loss": masked_loss(logits, masked, masked.weights.sum().clamp(min=1))}


class ReplacedTokenDetection(nn.Module):
    """Generator and discriminator with shared token embeddings (Clark et al. 2020)."""

    def __init__(self, spec: registry.Spec, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.spec, self.generator, self.model = spec, generator, discriminator
        encoder, shared = registry.encoder(generator), registry.encoder(discriminator).embeddings
        if spec.architecture == "deberta":
            # Its embedding module also holds the projection to the encoder's own width.
            for name in ("word_embeddings", "token_type_embeddings"):
                setattr(encoder.embeddings, name, getattr(shared, name))
        else:
            encoder.embeddings = shared
        if spec.tie_softmax:
            generator.get_output_embeddings().weight = shared.word_embeddings.weight

    def forward(self, tokens: torch.Tensor, masked: Masked) -> dict[str, torch.Tensor]:
        """The losses of one batch, scalars; ``loss`` = generator + 50 x discriminator."""
        # The generator guesses the masked tokens.
        logits = masked_logits(self.generator, masked)
        generator_loss = masked_loss(logits, masked, masked.weights.sum().clamp(min=1))
        # The discriminator tells for every token whether it is a guess that differs.
        corrupted, replaced = corrupt(tokens, masked, logits)
        detection = replaced_loss(self.model, corrupted, masked.types, replaced)
        discriminator_loss = detection / tokens.numel()
        return {
            "loss": generator_loss + registry.DISCRIMINATOR_WEIGHT * discriminator_loss,
            "generator_loss": generator_loss,
            "discriminator_loss": discriminator_loss,
        }


def build(
    spec: registry.Spec,
    size: registry.Size,
    vocabulary: int,
    max_length: int,
    dropout: float = 0.1,
    fraction: float = 0.0,
    *,
    fast: bool = True,
) -> MaskedLanguageModel | ReplacedTokenDetection:
    """The model of a registry entry under its objective; weights from torch's global generator.

    `fraction` is the width of the generator, 0 the registry's own. Unless `fast`, DeBERTa's
    attention and dropout are transformers' and torch's own, not ours.
    """
    config = registry.build_config(spec, size, vocabulary, max_length, dropout)
    if spec.objective == "rtd":
        width = fraction or spec.generator_fraction
        narrow = registry.build_config(spec, size, vocabulary, max_length, dropout, width)
        narrow.tie_word_embeddings = spec.tie_softmax
        discriminator = DISCRIMINATOR[spec.architecture](config)
        task = ReplacedTokenDetection(spec, registry.masked_lm(narrow), discriminator)
    else:
        task = MaskedLanguageModel(spec, registry.masked_lm(config))
    for value, change in (("sinusoids", "random-positions"), ("zero_types", "random-types")):
        if not getattr(spec.recipe, value) and not getattr(size, value):
            raise UserError(f"{change}: this size has no other start; one that has is small")
    tables = [named for named in task.named_modules() if isinstance(named[1], nn.Embedding)]
    for name, table in tables:
        if name.endswith("position_embeddings") and spec.recipe.sinusoids and size.sinusoids:
            fill_positions(table, size.sinusoids)
        if name.endswith("token_type_embeddings") and spec.recipe.zero_types and size.zero_types:
            nn.init.zeros_(table.weight)
    return use_fast_dropout(disentangled.speed_up(task)) if fast else task


@torch.no_grad()
def fill_positions(table: nn.Embedding, deviation: float) -> None:
    """Fills a table of absolute positions with sinusoids, as `Size.sinusoids` says.

    Rows are positions; pairs of columns are sine and cosine of wavelengths from pi to 60 pi
    positions, in equal ratios: short enough to tell neighbours apart, and long enough for a row of
    128 tokens. (Vaswani et al. 2017, section 3.5, go to 10,000 x 2 pi.)
    """
    rows, width = table.weight.shape
    wavelength = math.pi * 60 ** torch.linspace(0, 1, (width + 1) // 2)
    angle = 2 * math.pi * torch.arange(rows)[:, None] / wavelength
    waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
    table.weight.copy_(waves * deviation * math.sqrt(2))  # a sine's deviation is sqrt(1/2)
    if table.padding_idx is not None:  # of RoBERTa, which counts positions after it
        table.weight[table.padding_idx] = 0


def flops_per_token(task: nn.Module, length: int) -> float:
    """Matrix-product FLOP per token of one training step, forward and backward.

    Encoder(s) at every token, save the end of the last layer of one that guesses, and the MLM head:
    at 15 % of them; the discriminator and its head at all.
    """
    config, share = registry.encoder(task.model).config, registry.MASK_FRACTION
    if isinstance(task, MaskedLanguageModel):
        return token_flops(config, length, share) + share * head_flops(config)
    narrow = task.generator.config
    generator = token_flops(narrow, length, share) + share * head_flops(narrow)
    return token_flops(config, length) + generator + 3.0 * 2 * config.hidden_size**2
