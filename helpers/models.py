"""The registry of models: architecture, objective and the paper's sizes, in one place.

A model of your own is one more entry of ``REGISTRY`` (and, for another architecture, a branch in
:func:`build_config`). Parameter counts at the paper's size are in ``results/published.json``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import (
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.models.electra.modeling_electra import ElectraDiscriminatorPredictions

from helpers.config import UserError, did_you_mean


@dataclass(frozen=True)
class Spec:
    """One model of the study.

    Attributes:
        architecture: ``bert`` (with the factored embedding of ELECTRA's code, which the released
            BERT-small was trained with), ``roberta`` or ``deberta`` (v1, c2p|p2c).
        objective: ``mlm``, ``rtd`` (replaced-token detection) or ``none`` (no pre-training).
        tokenizer: ``wordpiece`` (uncased) or ``bpe`` (cased, byte-level).
        weight_decay: Of pre-training.
        masking: Of the chosen 15 % of tokens, the parts replaced by the mask and by a random
            token; the rest is kept.
        generator_fraction: Width of the generator over that of the discriminator; 0 without one.
        tie_softmax: Whether the generator's output softmax shares the token embeddings.
    """

    architecture: Literal["bert", "roberta", "deberta"]
    objective: Literal["mlm", "rtd", "none"]
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"
    weight_decay: float = 0.01
    masking: tuple[float, float] = (0.85, 0.0)
    generator_fraction: float = 0.0
    tie_softmax: bool = True


@dataclass(frozen=True)
class Size:
    """Shape of an encoder; `embedding` is the width of the token embeddings.

    `positions` is the length of BERT's position table (512 in the released BERT-small and ELECTRA,
    though they train at 128); 0 means the training length, as in the other released models.
    `initial` is the standard deviation of fresh weights: 0.02 is the released value, and too small
    for narrow models, whose first hundreds of steps it wastes.
    """

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    embedding: int
    roberta_embedding: int
    bert_positions: int = 0
    initial: float = 0.02


REGISTRY: dict[str, Spec] = {
    "bert": Spec("bert", "mlm"),
    "roberta": Spec("roberta", "mlm", tokenizer="bpe", masking=(0.8, 0.1)),
    "deberta": Spec("deberta", "mlm", masking=(0.8, 0.1)),
    "electra": Spec("bert", "rtd", generator_fraction=0.25),
    # As released: a generator as wide as the discriminator, its output softmax not tied.
    "electra-deberta": Spec(
        "deberta", "rtd", weight_decay=0.1, generator_fraction=1.0, tie_softmax=False
    ),
    "electra-deberta-quarter": Spec(
        "deberta", "rtd", weight_decay=0.1, generator_fraction=0.25, tie_softmax=False
    ),
    "scratch": Spec("bert", "none"),
}

SIZES: dict[str, Size] = {
    # paper.md, "Recipes as released"; RoBERTa's configuration leaves the embedding at 256.
    "paper": Size(12, 256, 4, 1024, embedding=128, roberta_embedding=256, bert_positions=512),
    "mini": Size(4, 128, 4, 512, embedding=64, roberta_embedding=128, initial=0.06),
    "tiny": Size(2, 128, 4, 512, embedding=128, roberta_embedding=128, initial=0.08),
}

MASK_FRACTION = 0.15
DISCRIMINATOR_WEIGHT = 50.0


def get(name: str) -> Spec:
    """The registry's entry.

    Raises:
        UserError: For an unknown name.
    """
    if name not in REGISTRY:
        raise UserError(f"model = {name!r}: not in the registry; {did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]


def get_size(name: str) -> Size:
    """The row of ``SIZES``.

    Raises:
        UserError: For an unknown name.
    """
    if name not in SIZES:
        raise UserError(f"size = {name!r}: unknown; {did_you_mean(name, SIZES)}")
    return SIZES[name]


def usable_length(tokenizer: str, max_length: int) -> int:
    """Tokens of a segment that a model with `max_length` positions can read.

    RoBERTa counts positions from padding_idx + 1 = 2, so its released table of 128 rows holds 126.
    """
    return max_length - 2 if tokenizer == "bpe" else max_length


def build_config(
    spec: Spec,
    size: Size,
    vocabulary: int,
    max_length: int,
    dropout: float = 0.1,
    width: float = 1.0,
) -> PretrainedConfig:
    """The transformers configuration of an encoder.

    Args:
        spec: Registry entry.
        size: Shape.
        vocabulary: Rows of the embedding table.
        max_length: Positions.
        dropout: Of hidden states and attention.
        width: Factor on hidden, heads and feed-forward: a generator's fraction. The token
            embeddings keep their width, because generator and discriminator share them.

    Raises:
        UserError: When the width leaves no whole number of heads.
    """
    heads = max(1, round(size.heads * width))
    hidden = round(size.hidden * width)
    if hidden < 8 or hidden % heads:
        raise UserError(
            f"generator_fraction = {width}: hidden {size.hidden} and {size.heads} heads become "
            f"{hidden} and {heads}; hidden must be at least 8 and divisible by the heads"
        )
    common = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "intermediate_size": round(size.feed_forward * width),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": 0,
        "initializer_range": size.initial,
    }
    if spec.architecture == "bert":
        positions = size.bert_positions or max_length
        return ElectraConfig(
            **common, embedding_size=size.embedding, max_position_embeddings=positions
        )
    if spec.architecture == "roberta":
        common |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        return RobertaConfig(
            **common, max_position_embeddings=max_length, type_vocab_size=1, layer_norm_eps=1e-5
        )
    return DebertaConfig(
        **common,
        embedding_size=size.embedding,
        max_position_embeddings=max_length,
        relative_attention=True,
        max_relative_positions=-1,
        position_biased_input=False,
        pos_att_type="c2p|p2c",
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        legacy=True,
    )


class DebertaDiscriminator(nn.Module):
    """DeBERTa-v1 with ELECTRA's replaced-token head; transformers has no such class."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.deberta = DebertaModel(config)
        head = ElectraConfig(hidden_size=config.hidden_size, hidden_act=config.hidden_act)
        self.discriminator_predictions = ElectraDiscriminatorPredictions(head)


MASKED_LM: dict[str, type[PreTrainedModel]] = {
    "bert": ElectraForMaskedLM,
    "roberta": RobertaForMaskedLM,
    "deberta": DebertaForMaskedLM,
}
DISCRIMINATOR: dict[str, type[nn.Module]] = {
    "bert": ElectraForPreTraining,
    "deberta": DebertaDiscriminator,
}


def encoder(model: nn.Module) -> nn.Module:
    """The encoder inside a model with a head."""
    for name in ("electra", "roberta", "deberta"):
        if hasattr(model, name):
            return getattr(model, name)
    raise TypeError(f"no encoder in {type(model).__name__}")


def count(model: nn.Module) -> int:
    """Parameters of a module; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def token_flops(config: PretrainedConfig, length: int) -> float:
    """Matrix-product FLOP of an encoder per token, forward and backward (three forwards).

    Per layer: 2 x (4 h^2 + 2 h f) for projections and feed-forward, 4 L h for scores and context.
    DeBERTa adds 4 L h for each of c2p and p2c over a table of 2 L positions; projecting that table
    is once per batch, not per token, and is left out.
    """
    h, f = config.hidden_size, config.intermediate_size
    layer = 2 * (4 * h * h + 2 * h * f) + 4 * length * h
    if config.model_type == "deberta":
        layer += 2 * 4 * length * h
    projection = 0
    if getattr(config, "embedding_size", h) != h:
        projection = 2 * config.embedding_size * h
    return 3.0 * (config.num_hidden_layers * layer + projection)


def head_flops(config: PretrainedConfig) -> float:
    """Matrix-product FLOP of an MLM head for one masked position, forward and backward."""
    h = config.hidden_size
    e = getattr(config, "embedding_size", h)
    return 3.0 * (2 * h * e + 2 * e * config.vocab_size)


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
