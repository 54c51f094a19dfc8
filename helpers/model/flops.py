"""Matrix-product FLOP of an encoder and of its heads."""

from transformers import PretrainedConfig


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
    e = getattr(config, "embedding_size", h)
    projection = 0 if e == h else 2 * e * h
    return 3.0 * (config.num_hidden_layers * layer + projection)


def head_flops(config: PretrainedConfig) -> float:
    """Matrix-product FLOP of an MLM head for one masked position, forward and backward."""
    h = config.hidden_size
    e = getattr(config, "embedding_size", h)
    return 3.0 * (2 * h * e + 2 * e * config.vocab_size)
