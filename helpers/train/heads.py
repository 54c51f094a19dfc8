"""An encoder with a fresh head: opened, checked, and the learning rates of its layers."""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from helpers.base.errors import UserError, one_line
from helpers.data import glue
from helpers.model import disentangled, last_layer
from helpers.model.dropout import use_fast_dropout
from helpers.train import checkpoint, loop

# Fields of configurations that hold a rate of dropout, where they hold a number: of hidden states,
# attention, embeddings, feed-forward and head.
DROPOUTS = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout"),
    *("attention_probs_dropout_prob", "attention_dropout"),
    *("classifier_dropout_prob", "seq_classif_dropout"),
)
# What stands behind the layers and belongs to the embeddings: the norm of DeBERTa-v2's table of
# relative positions.
EMBEDDINGS = ("embed", "relative_attention_bias", "encoder.LayerNorm")


def layers(base: nn.Module) -> dict[str, int]:
    """Prefixes of the names of parameters inside an encoder's layers, each with the layer's number.

    The layers are the longest list of modules that is in no other: XLM has several side by side,
    Funnel a list in a list, ALBERT one layer that is passed through again and again.
    """
    lists = {n: one for n, one in base.named_modules() if isinstance(one, nn.ModuleList)}
    outer = {n: one for n, one in lists.items() if not any(n.startswith(f"{m}.") for m in lists)}
    most = max(map(len, outer.values()), default=0)
    found: dict[str, int] = {}
    for name, one in outer.items():
        if len(one) < most:
            continue
        inside = [(f"{name}.{number}.", inner) for number, inner in enumerate(one)]
        prefixes = [prefix for prefix, _ in inside]
        if all(isinstance(inner, nn.ModuleList) for inner in one):
            prefixes = [f"{prefix}{k}." for prefix, inner in inside for k in range(len(inner))]
        found |= {prefix: number for number, prefix in enumerate(prefixes)}
    return found


def are_shared(model: nn.Module) -> bool:
    """Whether an encoder passes through its layers more than once, as ALBERT does."""
    numbers = layers(model.base_model).values()
    return max(numbers, default=-1) + 1 < getattr(model.config, "num_hidden_layers", 0)


def layer_rates(
    model: nn.Module, rate: float, decay: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups with ELECTRA's layer-wise learning rates; no weight decay on biases, norms.

    Depth is 0 for what comes before the layers and for the embeddings (their projection and tables
    of relative positions among them), 1 to n for the layers, n + 2 for the head and for what of the
    encoder follows the layers: a pooler, a last norm. The rate is ``rate * decay ** (n + 2 -
    depth)`` (google-research/electra, ``model/optimization.py``, whose encoder has neither).
    """
    base, numbers = model.base_model, layers(model.base_model)
    if decay < 1 and not numbers:
        raise UserError(
            f"finetune_layer_decay = {decay}: a {model.config.model_type} has no list of layers, "
            "so rates cannot follow them; use 1.0"
        )
    inside = {id(p): name for name, p in base.named_parameters()}
    tables = [n for n, module in base.named_modules() if isinstance(module, nn.Embedding)]
    last, before = max(numbers.values(), default=0) + 3, True
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        own, depth = inside.get(id(parameter)), last
        if own is not None:
            layer = next((n for prefix, n in numbers.items() if own.startswith(prefix)), None)
            before &= layer is None
            embeds = own.rpartition(".")[0] in tables or any(part in own for part in EMBEDDINGS)
            depth = layer + 1 if layer is not None else 0 if before or embeds else last
        groups.setdefault((depth, loop.is_decayed(name, parameter)), []).append(parameter)
    return [
        {
            "params": group,
            "base": rate * decay ** (last - depth),
            "lr": 0.0,
            "weight_decay": weight_decay * decayed,
        }
        for (depth, decayed), group in sorted(groups.items(), key=lambda item: item[0])
    ]


class LinearHead(nn.Module):
    """Dropout and one linear layer on the first token's last hidden state, by Xavier's rule.

    The head of google-research/electra (``finetune/classification/classification_tasks.py``).
    """

    def __init__(self, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, labels)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, float [batch, labels], of hidden states, float [batch, length, hidden]."""
        return self.output(self.dropout(hidden[:, 0]))


class Classifier(nn.Module):
    """An encoder that transformers has no classifier of, with a `LinearHead`."""

    base_model_prefix = "base_model"

    def __init__(self, encoder: nn.Module, dropout: float) -> None:
        super().__init__()
        self.base_model, self.config = encoder, encoder.config
        self.classifier = LinearHead(encoder.config.hidden_size, encoder.config.num_labels, dropout)

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """As transformers' classifiers, without a loss."""
        hidden = self.base_model(**inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(hidden))


def open_encoder(
    folder: Path, task: glue.Task, dropout: float, head: str = "transformers"
) -> nn.Module:
    """The encoder of a checkpoint with a fresh classification head, as `registry.Recipe` has it."""
    with one_line(f"{folder}: cannot be opened as an encoder"):
        about = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        values = about.to_dict()
        rates = [name for name in DROPOUTS if type(values.get(name)) in (int, float)]
        has_own = type(about) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        kind = AutoModelForSequenceClassification if has_own else AutoModel
        model, found = kind.from_pretrained(
            folder,
            output_loading_info=True,
            num_labels=max(1, len(task.labels)),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # left open, transformers asks at the terminal
            **dict.fromkeys(rates, dropout),
        )
    # A head is new and so may a pooler be; without a word transformers fills in any weight.
    inside = f"{model.base_model_prefix}." if has_own else ""
    missing = sorted(name for name in found["missing_keys"] if name.startswith(inside))
    check_weights(f"{folder}: model.safetensors:", model, missing)
    if not has_own:
        model = Classifier(model, dropout)
    elif head == "linear":
        # For types whose classifier reads hidden states, not a pooled vector.
        model.classifier = LinearHead(model.config.hidden_size, model.config.num_labels, dropout)
    if last_layer.applies(model.base_model):  # the heads of these types read the first token alone
        last_layer.cut(model.base_model, lambda hidden: hidden[:, :1])
    return use_fast_dropout(disentangled.speed_up(model))


def check_weights(where: str, model: nn.Module, missing: list[str]) -> None:
    """Checks that an encoder lacks no weights but a pooler's, and that all are finite."""
    if lost := [name for name in missing if "pooler." not in name]:
        raise UserError(
            f"{where} its weights lack {lost[0]} and {len(lost) - 1} others: they are not those of "
            f"a {model.config.model_type}, as config.json says"
        )
    if bad := checkpoint.not_finite(model.state_dict()):
        line = f"its weights hold {bad}, which is not finite; train it again or give others"
        raise UserError(f"{where} {line}")


def positions(base: nn.Module) -> int | None:
    """Tokens that an encoder has positions for; None where nothing in it is a limit.

    RoBERTa and its kin count from their padding token's number + 1.
    """
    limits = [getattr(base.config, "max_position_embeddings", None)]
    for name, module in base.named_modules():
        named = name.rpartition(".")[2] in ("position_embeddings", "embed_positions")
        if named and hasattr(module, "weight"):
            padding = getattr(module, "padding_idx", None)
            limits.append(len(module.weight) - (0 if padding is None else padding + 1))
    known = [one for one in limits if isinstance(one, int) and one > 0]
    return min(known) if known else None


def has_types(base: nn.Module) -> bool:
    """Whether an encoder tells a pair's second sentence from its first by token types."""
    tables = [
        module.num_embeddings
        for name, module in base.named_modules()
        if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding)
    ]
    reads = "token_type_ids" in inspect.signature(base.forward).parameters
    return reads and min(tables, default=2) > 1
