"""DeBERTa-v1's disentangled attention without gathers: transformers' parameters and numbers.

transformers looks relative positions up with two gathers over index tensors that are expanded to
[batch, heads, length, length]. Here both are relative shifts: the scores of row *i* against a table
of 2L relative positions are read from column L - 1 - *i* on, a strided view that copies nothing.
LayerNorm is torch's own in place of one written out in seven operations.

:func:`speed_up` exchanges those modules in a model. Parameters keep their names and identity, so
checkpoints go both ways and an optimiser sees no difference.

Source: He et al. 2021, section 3.1, equation 4 (arXiv 2006.03654).
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import DebertaConfig, DebertaModel, ElectraConfig
from transformers.models.deberta.modeling_deberta import (
    DebertaAttention,
    DebertaLayerNorm,
    DisentangledSelfAttention,
)
from transformers.models.electra.modeling_electra import ElectraDiscriminatorPredictions


def shift(scores: torch.Tensor) -> torch.Tensor:
    """Reads scores by relative position as scores by key: a view.

    `scores` are float [..., L, 2L], contiguous; the last column is never read. Element [*i*, *j*]
    of the result, float [..., L, L], is ``scores[..., i, j + L - 1 - i]``.
    """
    *lead, length, _ = scores.shape
    strides = (*scores.stride()[:-2], 2 * length - 1, 1)
    return scores.as_strided((*lead, length, length), strides, scores.storage_offset() + length - 1)


def relative_rows(length: int, span: int, device: torch.device) -> torch.Tensor:
    """Rows of the table of relative positions, in the order that :func:`shift` reads.

    The table has 2 span rows, row *d* + span for a distance *d* = *i* - *j* between two of L =
    `length` tokens; farther ones share the first and the last row in use. Entry *t* of the result,
    int64 [2L], is the row of the distance L - 1 - *t*.
    """
    reach = min(length, span)
    distance = length - 1 - torch.arange(2 * length, device=device)
    return (distance + reach).clamp(0, 2 * reach - 1) + span - reach


class Attention(nn.Module):
    """Disentangled self-attention over the parameters of a stock one, shared and not copied."""

    def __init__(self, stock: DisentangledSelfAttention) -> None:
        super().__init__()
        self.heads, self.width = stock.num_attention_heads, stock.attention_head_size
        self.span = stock.max_relative_positions
        self.scale = 1 / math.sqrt(self.width * 3)  # of three scores
        self.in_proj, self.q_bias, self.v_bias = stock.in_proj, stock.q_bias, stock.v_bias
        self.pos_proj, self.pos_q_proj = stock.pos_proj, stock.pos_q_proj
        self.pos_dropout, self.dropout = stock.pos_dropout, stock.dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_attentions: bool = False,
        *,
        rel_embeddings: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Called by transformers' layer as it calls its own, with an encoder's hidden states.

        `attention_mask` [batch, 1, L, L] is nonzero where a query may read a key, `rel_embeddings`
        float [2 span, hidden]. Its relative positions are not read: they follow from L. Gives float
        [batch, L, hidden] and None, or the weights [batch, heads, L, L].
        """
        table = self.table(rel_embeddings, hidden_states.shape[1])
        context, weights = self.attend(hidden_states, table, attention_mask == 0)
        return context, weights if output_attentions else None

    def table(self, embeddings: torch.Tensor, length: int) -> torch.Tensor:
        """Embeddings of relative positions, float [2L, hidden], as :func:`shift` reads them."""
        return embeddings[relative_rows(length, self.span, embeddings.device)]

    def attend(
        self, hidden: torch.Tensor, table: torch.Tensor, hide: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Context of every token, float [batch, L, hidden], and weights [batch, heads, L, L].

        `hidden` is float [batch, L, hidden]; the table that of :meth:`table`; `hide` bool
        [batch, 1, L, L], where a query may not read a key, None for nowhere.
        """
        query, key, value = self.project(hidden)
        batch, length = hidden.shape[:2]
        # The three scores of equation 4: content to position, position to content, and content to
        # content, which is added by the same matrix product that scales them all.
        table = self.pos_dropout(table)
        scores = self.content_to_position(query, table) + self.position_to_content(key, table)
        keys, scale = key.transpose(-1, -2), self.scale
        scores = torch.baddbmm(scores, query, keys, beta=scale, alpha=scale)
        # Padding gets the least number there is, which is no weight after the softmax.
        if hide is not None:
            scores = scores.unflatten(0, (self.heads, batch))
            scores = scores.masked_fill(hide.transpose(0, 1), torch.finfo(scores.dtype).min)
            scores = scores.flatten(0, 1)
        # Each token takes the weighted mean of the values; then heads stand side by side again.
        weights = self.dropout(scores.softmax(-1))
        context = (weights @ value).unflatten(0, (self.heads, batch))
        weights = weights.unflatten(0, (self.heads, batch)).transpose(0, 1)
        return context.permute(1, 2, 0, 3).reshape(batch, length, -1), weights

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Query, key and value of every token, each float [heads x batch, L, width]."""
        # in_proj's rows are query, key, value of head 0, then of head 1...; the key has no bias.
        biases = (self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)
        bias = torch.stack([b.view(self.heads, self.width) for b in biases], 1).flatten()
        mixed = functional.linear(hidden, self.in_proj.weight, bias.to(self.in_proj.weight.dtype))
        # Heads first: a head's positions are then one product over all tokens of the batch.
        mixed = mixed.unflatten(-1, (self.heads, 3, self.width)).permute(3, 2, 0, 1, 4)
        return mixed.flatten(1, 2).unbind()

    def content_to_position(self, query: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Scores of queries for relative positions, float [heads x batch, L, L], not scaled."""
        return shift(self._against(query, self.pos_proj(table)))

    def position_to_content(self, key: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Scores of relative positions for keys, float [heads x batch, L, L], not scaled."""
        # Seen from the key, distances run the other way: the same shift over the table turned.
        turned = self.pos_q_proj(table.flip(0).roll(-1, 0))
        return shift(self._against(key, turned)).transpose(-1, -2).contiguous()  # adds faster

    def _against(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Products, [heads x batch, L, 2L], of query or key and rows of positions, [2L, hidden]."""
        by_head = rows.unflatten(-1, (self.heads, self.width)).permute(1, 2, 0)
        products = tokens.view(self.heads, -1, self.width) @ by_head
        return products.view(len(tokens), -1, len(rows))


def speed_up(model: nn.Module) -> nn.Module:
    """Exchanges the attention and the norms of every DeBERTa-v1 inside `model`, and returns it.

    Parameters, their names and ``save_pretrained`` are unchanged. Attention other than the released
    models', without one of the positional terms or with talking heads, stays transformers' own.
    """
    for parent in list(model.modules()):
        if isinstance(parent, DebertaAttention) and _is_as_released(parent.self):
            parent.self = Attention(parent.self)
        for name, child in parent.named_children():
            if isinstance(child, DebertaLayerNorm):
                norm = nn.LayerNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm)
    return model


def _is_as_released(attention: nn.Module) -> bool:
    if not isinstance(attention, DisentangledSelfAttention) or attention.talking_head:
        return False
    return attention.relative_attention and sorted(attention.pos_att_type) == ["c2p", "p2c"]


def is_fast(model: nn.Module) -> bool:
    """Whether `model` is a DeBERTa-v1 that :func:`speed_up` has been through."""
    if not isinstance(model, DebertaModel):
        return False
    return isinstance(model.encoder.layer[0].attention.self, Attention)


def encode(
    model: DebertaModel, tokens: torch.Tensor, types: torch.Tensor | None = None
) -> torch.Tensor:
    """What ``model(tokens).last_hidden_state`` is for sequences without padding, made faster.

    There is no mask, the rows of positions are looked up once for all layers, and only the last
    layer's states are kept. :func:`speed_up` has been through `model`; tokens and their types are
    int64 [batch, L].
    """
    hidden, encoder = model.embeddings(tokens, token_type_ids=types), model.encoder
    first = encoder.layer[0].attention.self
    table = first.table(encoder.rel_embeddings.weight, tokens.shape[1])
    for layer in encoder.layer:
        context, _ = layer.attention.self.attend(hidden, table)
        attended = layer.attention.output(context, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    return hidden


class Discriminator(nn.Module):
    """DeBERTa-v1 with ELECTRA's replaced-token head; transformers has no such class."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.deberta = DebertaModel(config)
        head = ElectraConfig(hidden_size=config.hidden_size, hidden_act=config.hidden_act)
        self.discriminator_predictions = ElectraDiscriminatorPredictions(head)
        for layer in self.discriminator_predictions.children():
            if isinstance(layer, nn.Linear):  # as the release's init_weights(), at sd 0.02
                nn.init.normal_(layer.weight, std=config.initializer_range)
                nn.init.zeros_(layer.bias)
