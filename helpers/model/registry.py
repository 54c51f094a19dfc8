"""The registry of models: architecture, objective and the paper's sizes, in one place.

A model of your own is one more entry of ``REGISTRY``, of any architecture that transformers has a
masked language model for, or a folder ``models/<name>/`` with a transformers ``config.json``.
Parameter counts at the paper's size are in ``results/published.json``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from helpers.base import files
from helpers.base.errors import UserError, did_you_mean, one_line
from helpers.base.files import root

if TYPE_CHECKING:  # what reads the registry alone, each start of Snakemake, loads neither
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, as its source does it, and what it changes in a profile.

    ``results/published.json`` has what the sources say (``training``); the method page shows both.
    """

    # AdamW, in pre-training and fine-tuning.
    bias_correction: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    weight_decay: float = 0.01  # of pre-training; of matrices alone, not of biases and norms
    finetune_weight_decay: float = 0.0
    # The rate is warm-up times decay, as in google-research/electra, or decays after warm-up alone.
    ramp_times_decay: bool = False
    # Of fine-tuning: transformers' own, with its initialisation; or dropout and one linear layer on
    # the first token's last hidden state, by Xavier's rule.
    head: Literal["transformers", "linear"] = "transformers"
    # What differs from the profile in pre-training.
    dropout: float | None = None  # in place of the profile's, hidden and attention
    batch: int = 1  # factor on the rows per step; steps are divided by it: as many rows
    rate: float = 1.0  # factor on the peak learning rate
    end_rate: float = 0.0  # part of the peak left at the last step; 1 is no decay at all
    sinusoids: bool = True  # False: random positions, as released, where a size has sinusoids too
    zero_types: bool = True  # False: random token types, as released, where a size has zeros too
    seed: int = 0  # added to the seed of weights, order and masks


@dataclass(frozen=True)
class Spec:
    """One model of the study."""

    # bert has the factored embedding of ELECTRA's code, which the released BERT-small was trained
    # with; deberta is v1, c2p|p2c; transformers stands for the architecture `model_type` names.
    architecture: Literal["bert", "roberta", "deberta", "transformers"]
    # rtd: replaced-token detection; none: fresh weights; given: a checkpoint from elsewhere
    objective: Literal["mlm", "rtd", "none", "given"]
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"  # uncased; cased and byte-level
    # Of the chosen 15 % of tokens, the parts replaced by the mask and by a random token.
    masking: tuple[float, float] = (0.85, 0.0)
    generator_fraction: float = 0.0  # width of the generator over the discriminator's; 0: none
    types: int = 2  # of tokens, one for each segment of a row; of transformers, see `config`
    tie_softmax: bool = True  # the generator's output softmax shares the token embeddings
    model_type: str = ""  # transformers' name, as in config.json: roformer
    config: dict[str, Any] = field(default_factory=dict)  # fields unlike size and defaults
    recipe: Recipe = Recipe()


@dataclass(frozen=True)
class Size:
    """Shape of an encoder."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    embedding: int  # width of the token embeddings; RoBERTa's have that of the encoder
    # Length of BERT's position table: 512 in the released BERT-small and ELECTRA, though they
    # train at 128; 0 is the training length, as in the other released models.
    bert_positions: int = 0
    # Standard deviation of fresh weights: 0.02 is the released value, and too small for narrow
    # models, whose first hundreds of steps it wastes.
    initial: float = 0.02
    # Standard deviation of sinusoids that a fresh table of absolute positions is filled with, 0 for
    # random numbers as released. At a small budget such a table is learnt late or never: attention
    # stays uniform until then. It stays a parameter like any other.
    sinusoids: float = 0.0
    # Whether token types start from zero, not from random numbers as released. Such a vector is the
    # same for all tokens of a segment, and each layer of uniform attention makes it larger.
    zero_types: bool = False


# google-research/electra, which also trained the released BERT-small.
_ELECTRA = Recipe(
    bias_correction=False, finetune_weight_decay=0.01, ramp_times_decay=True, head="linear"
)
# transformers' run_mlm_no_trainer.
_ROBERTA = Recipe(epsilon=1e-8)
# microsoft/DeBERTa: no DeBERTa was released.
_DEBERTA = Recipe(bias_correction=False, finetune_weight_decay=0.01, ramp_times_decay=True)
# The released ELECTRA-DeBERTa.
_RELEASED = Recipe(epsilon=1e-8, weight_decay=0.1, ramp_times_decay=True)

REGISTRY: dict[str, Spec] = {
    "bert": Spec("bert", "mlm", recipe=_ELECTRA),
    "roberta": Spec(
        "roberta", "mlm", tokenizer="bpe", masking=(0.8, 0.1), types=1, recipe=_ROBERTA
    ),
    # DeBERTa-v1 as published has no token types; it reads the same rows of two segments.
    "deberta": Spec("deberta", "mlm", masking=(0.8, 0.1), types=0, recipe=_DEBERTA),
    "electra": Spec("bert", "rtd", generator_fraction=0.25, recipe=_ELECTRA),
    # As released: a generator as wide as the discriminator, its output softmax not tied.
    "electra-deberta": Spec(
        "deberta", "rtd", generator_fraction=1.0, tie_softmax=False, recipe=_RELEASED
    ),
    # Controls: an architecture without pre-training, `control` finds that of a model. DeBERTa's has
    # ELECTRA-DeBERTa's token types and training.
    "scratch": Spec("bert", "none", recipe=_ELECTRA),
    "scratch-roberta": Spec("roberta", "none", tokenizer="bpe", types=1, recipe=_ROBERTA),
    "scratch-deberta": Spec("deberta", "none", recipe=_RELEASED),
}


@dataclass(frozen=True)
class Change:
    """One thing of a model's pre-training made otherwise: new fields of its recipe and spec."""

    recipe: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    only: tuple[Any, ...] = ("",)  # a field of the model and what it may be


_GENERATOR = ("objective", "rtd")
CHANGES: dict[str, Change] = {
    "no-dropout": Change({"dropout": 0.0}),
    "large-batch": Change({"batch": 4, "rate": 2.0}),
    "high-rate": Change({"rate": 4.0}),
    "constant-rate": Change({"end_rate": 1.0}),
    "random-positions": Change({"sinusoids": False}, only=("architecture", "bert", "roberta")),
    "random-types": Change({"zero_types": False}, only=("types", 1, 2)),
    "quarter-generator": Change(spec={"generator_fraction": 0.25}, only=_GENERATOR),
    "tied-softmax": Change(spec={"tie_softmax": True}, only=_GENERATOR),
    # transformers has a pre-LN encoder of RoBERTa alone.
    "pre-ln": Change(
        spec={
            "architecture": "transformers",
            "model_type": "roberta-prelayernorm",
            "config": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
        },
        only=("architecture", "roberta"),
    ),
}
"""What may follow a model's name after a plus sign: ``deberta+no-dropout``; ``bert+seed-1`` has
nothing but another seed of weights, order and masks."""

SIZES: dict[str, Size] = {
    # book/method.md, "Recipes as released"; RoBERTa's configuration leaves the embedding at 256.
    "paper": Size(12, 256, 4, 1024, embedding=128, bert_positions=512),
    "small": Size(4, 256, 4, 1024, embedding=128, initial=0.06, sinusoids=0.06, zero_types=True),
    "mini": Size(4, 128, 4, 512, embedding=64, initial=0.06),
    "tiny": Size(2, 128, 4, 512, embedding=128, initial=0.08),
}

# Of a config.json in models/<name>/: the study sets these itself, or they are no settings.
SET_BY_THE_STUDY = {
    *("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "model_type", "architectures"),
    *("transformers_version", "dtype", "torch_dtype", "_name_or_path"),
}

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # as transformers names them
FOREIGN = Spec("transformers", "given")  # of a checkpoint from elsewhere, named title@hash

MASK_FRACTION = 0.15
DISCRIMINATOR_WEIGHT = 50.0


def get(name: str) -> Spec:
    """The registry's entry, or the one a folder ``models/<name>/`` makes, with its changes.

    >>> get("bert+no-dropout+seed-1").recipe.seed
    1
    """
    base, changes, seed = parts(name)
    spec, seen = REGISTRY[base] if base in REGISTRY else _of_folder(base), set()
    for change in changes:
        if change not in CHANGES:
            known = [*CHANGES, "seed-1"]
            raise UserError(f"model = {name!r}: no such change; {did_you_mean(change, known)}")
        made = CHANGES[change]
        key, *may = made.only
        if key and getattr(spec, key) not in may:
            allowed = " or ".join(map(str, may))
            raise UserError(f"model = {name!r}: {change} needs a model whose {key} is {allowed}")
        if seen & {*made.spec, *made.recipe}:
            raise UserError(f"model = {name!r}: {change} changes what another change does")
        seen |= {*made.spec, *made.recipe}
        spec = replace(spec, **made.spec, recipe=replace(spec.recipe, **made.recipe))
    return replace(spec, recipe=replace(spec.recipe, seed=seed)) if seed else spec


def parts(name: str) -> tuple[str, tuple[str, ...], int]:
    """A model's name without its changes, those of `CHANGES`, and what is added to the seed."""
    base, *changes = name.split("+")
    seeds = [int(one[5:]) for one in changes if re.fullmatch(r"seed-\d{1,4}", one)]
    others = tuple(one for one in changes if not re.fullmatch(r"seed-\d{1,4}", one))
    if len(seeds) > 1 or len(set(others)) < len(others):
        raise UserError(f"model = {name!r}: a change stands there twice; once is right")
    return base, others, sum(seeds)


def _of_folder(name: str) -> Spec:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*@[0-9a-f]{8}", name):
        return FOREIGN
    path = root() / "models" / name / "config.json"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or not path.is_file():
        raise UserError(f"model = {name!r}: not in the registry; {did_you_mean(name, REGISTRY)}")
    if weights := [one for kind in WEIGHTS for one in files.visible(path.parent, kind)]:
        raise UserError(
            f"model = {name!r}: models/{name} holds weights, {weights[0].name}: it is scored, "
            f"small-bench score models/{name}, not pre-trained; to pre-train its configuration, "
            "put config.json alone into a folder of another name"
        )
    values = files.read_json(path)
    config = {key: value for key, value in values.items() if key not in SET_BY_THE_STUDY}
    spec = Spec("transformers", "mlm", model_type=str(values.get("model_type", "")), config=config)
    _config_class(spec, str(path))
    return spec


def knows(name: str) -> bool:
    """Whether :func:`get` has a model of this name."""
    try:
        return bool(get(name))
    except UserError:
        return False


def control(name: str) -> str | None:
    """The registry's model of this architecture without pre-training; None where there is none."""
    if not knows(name):  # a kept run's own model, which is not here
        return None
    spec = get(name)
    same = ("architecture", "tokenizer", "model_type", "config")
    alike = [
        other
        for other, one in REGISTRY.items()
        if one.objective == "none" and all(getattr(one, key) == getattr(spec, key) for key in same)
    ]
    return alike[0] if alike and spec.objective != "none" else None


def _config_class(spec: Spec, where: str) -> type[PretrainedConfig]:
    """The configuration class of transformers; a :class:`UserError` where it has no MLM."""
    if spec.objective == "given":
        raise UserError("a checkpoint from elsewhere is scored, small-bench score, not pre-trained")
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = list(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if spec.model_type not in known:
        hint = did_you_mean(spec.model_type, known)
        raise UserError(
            f"{where}: model_type = {spec.model_type!r}: transformers has no masked language model "
            f"of this type; {hint}"
        )
    return transformers.CONFIG_MAPPING[spec.model_type]


def get_size(name: str) -> Size:
    """The row of ``SIZES``."""
    if name not in SIZES:
        raise UserError(f"size = {name!r}: unknown; {did_you_mean(name, SIZES)}")
    return SIZES[name]


def hidden(size: Size, width: float) -> int:
    """The width of an encoder, times a generator's fraction."""
    found = round(size.hidden * width)
    if found < 8:
        raise UserError(
            f"generator_fraction = {width}: hidden {size.hidden} becomes {found}; at least 8"
        )
    return found


def build_config(
    spec: Spec, size: Size, vocabulary: int, max_length: int, dropout: float = 0.1, width: float = 1
) -> PretrainedConfig:
    """The transformers configuration of an encoder.

    `width` is a factor on hidden and feed-forward: a generator's fraction. The token
    embeddings keep their width, because generator and discriminator share them.
    """
    import transformers

    own = hidden(size, width)
    # Heads of a narrow generator are 64 wide, as in google-research/electra, where that divides.
    heads = size.heads if width == 1 else max(1, own // 64)
    while own % heads:
        heads -= 1
    common = {
        "vocab_size": vocabulary,
        "hidden_size": own,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "intermediate_size": round(size.feed_forward * width),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": 0,
        "initializer_range": size.initial,
        "max_position_embeddings": max_length,
    }
    if spec.tokenizer == "bpe":
        common |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if spec.architecture == "bert":
        common |= {"max_position_embeddings": size.bert_positions or max_length}
        return transformers.ElectraConfig(
            **common, type_vocab_size=spec.types, embedding_size=size.embedding
        )
    if spec.architecture == "roberta":
        return transformers.RobertaConfig(**common, type_vocab_size=spec.types, layer_norm_eps=1e-5)
    if spec.architecture == "deberta":
        common |= {"relative_attention": True, "pos_att_type": "c2p|p2c"}
        common |= {"type_vocab_size": spec.types}
        common |= {"max_relative_positions": -1, "position_biased_input": False, "legacy": True}
        return transformers.DebertaConfig(
            **common, embedding_size=size.embedding, layer_norm_eps=1e-7
        )
    # RoBERTa's kin count positions from padding_idx + 1: two rows more are enough for all.
    return _any_config(spec, size, common | {"max_position_embeddings": max_length + 2})


def _any_config(spec: Spec, size: Size, common: dict[str, Any]) -> PretrainedConfig:
    make = _config_class(spec, "registry")
    defaults = make()
    missing = [name for name in common if not hasattr(defaults, name)]
    if missing:
        raise UserError(
            f"model_type = {spec.model_type!r}: its configuration has no {missing[0]}, which the "
            "study sets; only architectures with BERT's fields can be taken"
        )
    if hasattr(defaults, "embedding_size"):
        common |= {"embedding_size": size.embedding}
    with one_line(f"model_type = {spec.model_type!r}: not a configuration"):
        return make(**common | spec.config)


def masked_lm(config: PretrainedConfig) -> PreTrainedModel:
    """A masked language model with fresh weights."""
    import transformers

    with one_line(f"model_type = {config.model_type!r}: not a configuration"):
        return transformers.AutoModelForMaskedLM.from_config(config)


def encoder(model: nn.Module) -> nn.Module:
    """The encoder inside a model with a head."""
    return model.deberta if hasattr(model, "deberta") else model.base_model


def count(model: nn.Module) -> int:
    """Parameters of a module; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
