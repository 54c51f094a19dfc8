"""Dropout from 16 bits an element, against its law and torch's own gradient."""

import pytest
import torch
import transformers
from scipy import stats
from torch import nn
from torch.nn import functional

from helpers.model import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_scale_and_gradient(rate, dtype):
    torch.manual_seed(0)
    values = torch.rand(101, 7, 143, dtype=torch.float32).to(dtype).requires_grad_()
    found = dropout.drop(values, rate)
    assert found.dtype == dtype
    kept = found != 0
    dropped = int((~kept).sum())
    assert stats.binomtest(dropped, values.numel(), rate).pvalue > 1e-4
    rounding = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found[kept], values[kept] / (1 - rate), rtol=rounding, atol=0)
    found.sum().backward()
    torch.testing.assert_close(values.grad, kept.to(dtype) / (1 - rate), rtol=1e-2, atol=0)


def test_neighbours_that_share_a_draw_are_independent():
    torch.manual_seed(1)
    kept = (dropout.drop(torch.ones(400_000), 0.3) != 0).view(-1, 4)
    patterns = (kept * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16)
    ones = [pattern.bit_count() for pattern in range(16)]
    wanted = [100_000 * 0.7**n * 0.3 ** (4 - n) for n in ones]
    assert stats.chisquare(patterns.numpy(), wanted).pvalue > 1e-4


def test_edges_seed_and_evaluation():
    values = torch.ones(33)
    assert torch.equal(dropout.drop(values, 0.0), values)
    assert not dropout.drop(values, 1.0).any()
    many, drawn, threads = torch.ones(1_000_000), [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(3)
        drawn.append(dropout.drop(many, 0.5))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)
    assert torch.equal(dropout.Dropout(0.5).eval()(values), values)


SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
KINDS = [transformers.BertConfig, transformers.RobertaConfig, transformers.ElectraConfig]


@pytest.fixture(params=KINDS)
def encoder(request):
    torch.manual_seed(0)
    config = request.param(**SMALL, embedding_size=16, hidden_dropout_prob=0.0)
    return transformers.AutoModel.from_config(config).train()


@pytest.fixture
def batch():
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[0, 5:] = mask[1, 9:] = 0
    return {"input_ids": torch.randint(3, 50, (3, 12)), "attention_mask": mask}


def set_attention_dropout(encoder, rate):
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


@pytest.mark.parametrize("masked", [True, False])
def test_attention_at_a_rate_that_rounds_to_none_is_torchs_own(encoder, batch, masked):
    if not masked:
        del batch["attention_mask"]
    set_attention_dropout(encoder, 0.0)
    wanted = encoder(**batch).last_hidden_state
    wanted.square().mean().backward()
    gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    dropout.use_fast_dropout(encoder)
    set_attention_dropout(encoder, 1e-9)
    found = encoder(**batch).last_hidden_state
    found.square().mean().backward()
    torch.testing.assert_close(found, wanted)
    ours = [p.grad for p in encoder.parameters() if p.grad is not None]
    torch.testing.assert_close(ours, gradients, rtol=1e-4, atol=1e-7)


def test_attention_dropout_keeps_its_mean_and_follows_the_seed(encoder, batch):
    attention = dropout.use_fast_dropout(encoder).encoder.layer[0].attention.self
    query, key, value = torch.randn(3, 3, 2, 12, 8)
    mask = batch["attention_mask"].bool()[:, None, None].expand(3, 1, 12, 12)
    wanted = functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    draws = [dropout.attend(attention, query, key, value, mask, 0.5)[0] for _ in range(400)]
    assert not torch.equal(draws[0], draws[1])
    error = torch.stack(draws).std(0) / 20
    # One in 10,000 of a normal law lies beyond 3.9 standard errors.
    assert (((torch.stack(draws).mean(0) - wanted).abs() / error) < 4.5).all()
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(dropout.attend(attention, query, key, value, mask, 0.5)[0])
    assert torch.equal(draws[-1], draws[-2])


def test_no_bernoulli_is_drawn_and_nothing_of_it_is_saved(encoder, batch, tmp_path):
    encoder.save_pretrained(tmp_path / "stock")
    set_attention_dropout(encoder, 0.1)
    dropout.use_fast_dropout(encoder)
    with torch.profiler.profile() as profile:
        encoder(**batch)
    assert "aten::bernoulli_" not in {event.key for event in profile.key_averages()}
    encoder.save_pretrained(tmp_path / "ours")
    stock, ours = ((tmp_path / name / "config.json").read_text() for name in ("stock", "ours"))
    assert ours == stock


@pytest.mark.parametrize(
    "others", [{"is_causal": True}, {"position_bias": torch.randn(1, 2, 6, 6)}, {"heads": 1}]
)
def test_what_is_not_plain_attention_is_left_to_sdpa(others, monkeypatch):
    seen = []
    monkeypatch.setattr(dropout, "sdpa_attention_forward", lambda *a, **b: seen.append((a, b)))
    heads = others.pop("heads", 2)
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, heads, 6, 4)
    dropout.attend(nn.Module(), query, key, key, None, 0.1, **others)
    assert len(seen) == 1
    assert seen[0][1] == others
