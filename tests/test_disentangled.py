"""The fast attention against transformers' own: outputs, gradients, checkpoints."""

import copy

import pytest
import torch
from transformers import AutoModel, DebertaConfig, DebertaModel

from helpers.model import disentangled


def model(seed, heads, span, kinds="c2p|p2c", **options):
    torch.manual_seed(seed)
    config = DebertaConfig(
        vocab_size=50,
        hidden_size=8 * heads,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=32,
        relative_attention=bool(kinds),
        max_relative_positions=span,
        max_position_embeddings=40,
        position_biased_input=False,
        pos_att_type=kinds,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        **options,
    )
    return DebertaModel(config).train()


def distance(one, other):
    return ((one - other).norm() / one.norm()).item()


def gradients(network, hidden, weights):
    network.zero_grad()
    (hidden * weights).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("span", [-1, 3, 17, 64])
def test_outputs_and_gradients_are_those_of_transformers(span, padded):
    rng = torch.Generator().manual_seed(span + 5)
    for seed in range(4):
        heads, length, batch = (
            int(torch.randint(low, high, (), generator=rng))
            for low, high in [(1, 5), (1, 41), (1, 5)]
        )
        stock = model(seed, heads, span)
        fast = disentangled.speed_up(copy.deepcopy(stock))
        tokens = torch.randint(1, 50, (batch, length), generator=rng)
        weights = torch.randn(batch, length, 8 * heads, generator=rng)
        mask = None
        if padded:
            ends = torch.randint(1, length + 1, (batch, 1), generator=rng)
            mask = (torch.arange(length) < ends).long()
        theirs = stock(tokens, attention_mask=mask).last_hidden_state
        ours = fast(tokens, attention_mask=mask).last_hidden_state
        assert distance(theirs, ours) < 1e-5
        if not padded:
            assert distance(theirs, disentangled.encode(fast, tokens)) < 1e-5
        expected, found = (gradients(*x, weights) for x in ((stock, theirs), (fast, ours)))
        # The rounding of a gradient is that of the sums it is made of: one that is zero in exact
        # arithmetic (the bias of a softmax's keys) has none of its own.
        scale = max(g.norm() for g in expected.values())
        for name, gradient in expected.items():
            if gradient.norm() > 1e-6 * scale:
                assert distance(gradient, found[name]) < 1e-5, name


def test_a_checkpoint_goes_both_ways(tmp_path):
    stock = model(0, 2, -1)
    fast = disentangled.speed_up(copy.deepcopy(stock))
    assert list(fast.state_dict()) == list(stock.state_dict())
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(0.1)
    fast.save_pretrained(tmp_path)
    tokens = torch.arange(1, 13).view(2, 6)
    again = AutoModel.from_pretrained(tmp_path).train()
    assert distance(again(tokens).last_hidden_state, disentangled.encode(fast, tokens)) < 1e-5
    stock.load_state_dict(fast.state_dict())
    assert torch.equal(stock(tokens).last_hidden_state, again(tokens).last_hidden_state)


@pytest.mark.parametrize(
    ("kinds", "options"), [("c2p", {}), ("", {}), ("c2p|p2c", {"talking_head": True})]
)
def test_attention_unlike_the_released_models_stays_transformers_own(kinds, options):
    stock = model(0, 2, -1, kinds, **options)
    tokens = torch.arange(1, 13).view(2, 6)
    wanted = stock(tokens).last_hidden_state
    fast = disentangled.speed_up(stock)
    assert not disentangled.is_fast(fast)
    assert distance(wanted, fast(tokens).last_hidden_state) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_inference_stay_close(dtype):
    fast = disentangled.speed_up(model(0, 2, -1))
    tokens = torch.arange(1, 21).view(2, 10)
    mask = torch.tensor([[1] * 10, [1] * 6 + [0] * 4])
    whole = fast(tokens, attention_mask=mask).last_hidden_state
    with torch.autocast("cpu", dtype=dtype):
        half = fast(tokens, attention_mask=mask).last_hidden_state
    half.float().sum().backward()
    assert distance(whole, half.float()) < 3e-2
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)
    with torch.inference_mode():
        again = fast.eval()(tokens, attention_mask=mask, output_attentions=True)
    assert distance(whole, again.last_hidden_state) < 1e-5
    assert torch.allclose(again.attentions[0].sum(-1), torch.ones(2, 2, 10))
