"""Dropout from 16 bits an element, against its law and torch's own gradient."""

import pytest
import torch
from scipy import stats
from torch import nn

from helpers import dropout


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
    keep = torch.tensor([0.7])
    expected = [
        float(keep ** bin(p).count("1") * (1 - keep) ** (4 - bin(p).count("1"))) for p in range(16)
    ]
    total = sum(expected)
    wanted = [100_000 * e / total for e in expected]
    assert stats.chisquare(patterns.numpy(), wanted).pvalue > 1e-4


def test_edges_seed_and_evaluation():
    values = torch.ones(33)
    assert torch.equal(dropout.drop(values, 0.0), values)
    assert not dropout.drop(values, 1.0).any()
    torch.manual_seed(3)
    first = dropout.drop(values, 0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    assert torch.equal(dropout.drop(values, 0.5), first)
    torch.set_num_threads(threads)
    assert torch.equal(dropout.Dropout(0.5).eval()(values), values)


def test_exchange_takes_every_dropout_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4)))
    dropout.exchange_dropout(model)
    found = [m.p for m in model.modules() if isinstance(m, dropout.Dropout)]
    assert found == [0.2, 0.4]
