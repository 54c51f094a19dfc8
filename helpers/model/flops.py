"""Matrix-product FLOP of an encoder and of its heads."""

from transformers import PretrainedConfig

from helpers.model.last_layer import POST_NORM

# How configurations name the width of the feed-forward layers; XLM has no name for its 4 h.
WIDTHS = ("intermediate_size", "hidden_dim", "d_inner", "feed_forward_size")


def token_flops(config: PretrainedConfig, length: int, read: float = 1.0) -> float:
    """Matrix-product FLOP of an encoder per token, forward and backward (three forwards).

    Per layer: 2 x (4 h^2 + 2 h f) for projections and feed-forward, 4 L h for scores and context.
    DeBERTa adds 4 L h for each of c2p and p2c over a table of 2 L positions; projecting that table
    is once per batch, not per token, and is left out. Where a head reads a part `read` of the
    tokens, the last layer's own 2 x (h^2 + 2 h f) after the attention are counted for those alone.
    """
    h = config.hidden_size
    f = next((getattr(config, name) for name in WIDTHS if hasattr(config, name)), 4 * h)
    layer = 2 * (4 * h * h + 2 * h * f) + 4 * length * h
    if config.model_type == "deberta":
        layer += 2 * 4 * length * h
    e = getattr(config, "embedding_size", h)
    projection = 0 if e == h else 2 * e * h
    unread = 2 * (h * h + 2 * h * f) * (1 - read) if config.model_type in POST_NORM else 0.0
    return 3.0 * (config.num_hidden_layers * layer - unread + projection)


def head_flops(config: PretrainedConfig) -> float:
    """Matrix-product FLOP of an MLM head for one masked position, forward and backward."""
    h = config.hidden_size
    e = getattr(config, "embedding_size", h)
    return 3.0 * (2 * h * e + 2 * e * config.vocab_size)
