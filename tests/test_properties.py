"""Properties that hold for any input, each against an oracle of its own.

The same few examples every time; HYPOTHESIS_PROFILE=thorough tries many more, at random.
"""

import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import paired_bootstrap

from helpers.base.errors import LINE_LIMIT, UserError
from helpers.data import glue, packing, tokenizer
from helpers.score import statistics
from helpers.train import batches, objectives

COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("quick", **COMMON, max_examples=25, derandomize=True)
settings.register_profile("thorough", **COMMON, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

TEXT = st.text(max_size=40)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=7)


def one_line(error):
    line = str(error)
    assert line.isprintable()
    assert 0 < len(line) <= LINE_LIMIT + 3
    return line


# --- parameters ----------------------------------------------------------------------------------


@given(st.text())
def test_an_error_is_one_printable_line_that_keeps_printable_text(text):
    line = str(UserError(text))
    assert line.isprintable()
    if text.isprintable() and len(text) <= LINE_LIMIT:
        assert line == text


# --- tokens --------------------------------------------------------------------------------------

WORDS = ["the", "a", "small", "large", "dog", "cat", "sees", "and", "old", "tree", "house", "runs"]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tok(request):
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3
    return tokenizer.train(request.param, 400, lambda: texts)


DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | TEXT, max_size=9)


@given(DOCUMENTS, st.integers(3, 20), st.data())
def test_packing_loses_nothing_but_the_tail(tok, documents, length, data):
    stream = []
    for text in documents:
        stream += [*tok(text, add_special_tokens=False)["input_ids"], tok.sep_token_id]
    whole = len(stream) // (length - 2)
    blocks = list(packing.pack(documents, tok, length))
    packed = np.concatenate([np.empty((0, length), int), *blocks])
    assert packed.shape == (whole, length)
    assert (packed[:, 0] == tok.cls_token_id).all()
    assert (packed[:, -1] == tok.sep_token_id).all()
    assert packed[:, 1:-1].ravel().tolist() == stream[: whole * (length - 2)]

    cut = data.draw(st.integers(0, len(documents)))  # in two shards
    rest, shards = [], []
    for texts in (documents[:cut], documents[cut:]):
        block, rest = packing.pack_batch(texts, tok, length, rest)
        shards.append(block)
    assert (np.concatenate(shards) == packed).all()
    assert rest == stream[whole * (length - 2) :]


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.integers(8, 40), st.booleans())
def test_pairs_are_cut_to_length_and_swapped_ones_follow(tok, pairs, length, swap):
    first, second = zip(*pairs, strict=True)
    table = pd.DataFrame({"sentence1": first, "sentence2": second})
    table["label"], table["idx"] = 0, range(len(table))
    found = batches.encode(table, glue.get("mrpc"), tok, length, swap)
    ones, others = (first + second, second + first) if swap else (first, second)
    cut = {"truncation": "longest_first", "max_length": length}
    wanted = tok(list(ones), list(others), **cut)["input_ids"]
    assert found.lengths.tolist() == [len(ids) for ids in wanted]
    assert found.ids.tolist() == [token for ids in wanted for token in ids]
    assert len(found.labels) == len(wanted)
    assert found.lengths.max() <= length


@given(
    st.lists(st.tuples(st.integers(1, 128), st.integers(0, 2)), min_size=1, max_size=400),
    st.integers(1, 16),
    st.integers(0, 99),
    st.booleans(),
)
def test_batches_hold_every_row_once_and_one_is_short(rows, size, seed, regression):
    lengths, labels = np.array(rows).T
    labels = labels / 2 if regression else labels
    found = list(batches.batches(lengths, labels, size, np.random.default_rng(seed)))
    assert sorted(np.concatenate(found)) == list(range(len(rows)))
    full, rest = divmod(len(rows), size)
    assert sorted(map(len, found)) == [rest] * (rest > 0) + [size] * full


# --- masks ---------------------------------------------------------------------------------------

SPECIAL = torch.tensor([True] * 5 + [False] * 45)
VOCABULARY = objectives.Vocabulary(4, SPECIAL, torch.arange(5, 50), 3)


def mask(tokens, masking, seed):
    generator = torch.Generator().manual_seed(seed)
    return objectives.mask_tokens(tokens, VOCABULARY, masking, generator)


@given(
    st.lists(st.lists(st.integers(0, 49), min_size=24, max_size=24), min_size=1, max_size=6),
    st.sampled_from([(0.8, 0.1), (0.85, 0.0), (1.0, 0.0)]),
    st.integers(0, 2**31),
)
def test_masks_hide_ordinary_tokens_only_and_can_be_undone(rows, masking, seed):
    tokens = torch.tensor(rows)
    found = mask(tokens, masking, seed)
    chosen = torch.zeros_like(tokens).scatter(1, found.positions, found.weights.long()).bool()
    ordinary = ~SPECIAL[tokens]
    assert not (chosen & ~ordinary).any()
    assert (found.inputs == tokens)[~chosen].all()
    wanted = [min(max(1, round(0.15 * n)), n, 4) for n in ordinary.sum(1).tolist()]
    assert chosen.sum(1).tolist() == wanted
    assert (found.inputs.scatter(1, found.positions, found.targets) == tokens).all()
    assert all((a == b).all() for a, b in zip(found, mask(tokens, masking, seed), strict=True))
    changed = found.inputs[chosen & (found.inputs != tokens)]
    assert masking[1] or (changed == VOCABULARY.mask).all()
    assert (~SPECIAL[changed] | (changed == VOCABULARY.mask)).all()


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 20.0]))
def test_labels_of_replaced_tokens_say_where_tokens_differ(seed, sharpness):
    torch.manual_seed(seed)
    tokens = torch.randint(0, 50, (3, 24))
    masked = mask(tokens, (0.85, 0.0), seed)
    logits = sharpness * torch.randn(*masked.positions.shape, 50)
    corrupted, labels = objectives.corrupt(tokens, masked, logits)
    assert (labels.bool() == (corrupted != tokens)).all()
    chosen = torch.zeros_like(tokens).scatter(1, masked.positions, masked.weights.long()).bool()
    assert not labels[~chosen].any()
    if sharpness == 20.0:  # every sample is among the likely ones
        got = corrupted.gather(1, masked.positions)
        chance = logits.softmax(-1).gather(-1, got.unsqueeze(-1)).squeeze(-1)
        assert (chance[masked.weights > 0] > 0).all()


# --- scores --------------------------------------------------------------------------------------


@given(SCORES, st.randoms(use_true_random=False))
def test_a_summary_does_not_see_the_order_and_its_range_holds_the_mean(values, chance):
    found = statistics.summary(values)
    mixed = list(values)
    chance.shuffle(mixed)
    again = statistics.summary(mixed)
    assert (again.low, again.high, again.mean) == pytest.approx((found.low, found.high, found.mean))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.sd == pytest.approx(
        np.std(values, ddof=1) if len(values) > 1 else math.nan, nan_ok=True, abs=1e-9
    )
    assert (found.low, found.high) == (min(values), max(values))
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


@given(st.integers(0, 2**31), st.sampled_from(["cola", "rte", "stsb"]))
def test_a_comparison_turned_round_changes_its_sign(seed, task):
    rng = np.random.default_rng(seed)
    truth, one, two = ({task: rng.integers(2, size=n)} for n in (30, (3, 30), (3, 30)))
    there = paired_bootstrap(one, two, truth, resamples=20, seed=seed)
    back = paired_bootstrap(two, one, truth, resamples=20, seed=seed)
    assert back.difference == pytest.approx(-there.difference)
    assert there.low <= there.high
    assert back.p == pytest.approx(there.p)
    assert there.resolved == (there.p <= 0.05) == (not there.low <= 0 <= there.high)
    own = paired_bootstrap(one, one, truth, resamples=20, seed=seed)
    assert own.difference == 0
    assert own.low <= 0 <= own.high
