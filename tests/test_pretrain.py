"""Objectives: masking, sampling, labels; and runs that are cut, repeated or wrong."""

import doctest
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from makers import pretraining
from scipy import stats

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import tokenizer
from helpers.model import registry
from helpers.train import batches, loop, objectives, pretrain

SIZE = 50
SPECIAL = torch.arange(SIZE) < 5
VOCABULARY = objectives.Vocabulary(4, SPECIAL, torch.arange(5, SIZE), 3)


def batch(rows=400, length=64):
    tokens = torch.randint(5, SIZE, (rows, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1], tokens[::2, 20] = 2, 3, 3
    return tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("masking", [(0.85, 0.0), (0.8, 0.1)])
def test_masking_rates(masking):
    tokens = batch()
    masked = objectives.mask_tokens(tokens, VOCABULARY, masking, seeded())
    other = objectives.mask_tokens(tokens, VOCABULARY, masking, seeded(1))
    assert not torch.equal(masked.inputs, other.inputs)
    chosen = masked.weights > 0
    ordinary = int((~SPECIAL[tokens]).sum())
    # The number per row is fixed, so the rate is exact but for rounding.
    assert int(chosen.sum()) / ordinary == pytest.approx(0.15, abs=0.01)

    now = masked.inputs.gather(1, masked.positions)[chosen]
    then = masked.targets[chosen]
    n = len(then)
    for share, found in [
        (masking[0], int((now == 4).sum())),
        (1 - sum(masking), int((now == then).sum())),
    ]:
        # A random replacement equals the original once in 45.
        expected = share + (masking[1] / 45 if share < 0.5 else 0)
        assert stats.binomtest(found, n, expected).pvalue > 1e-4


def test_an_unknown_word_is_masked_and_drawn_like_any_other(small_run):
    tok = tokenizer.load(small_run.folder / "tokenizer" / "wordpiece")
    known = objectives.Vocabulary.of(tok, torch.device("cpu"))
    assert known.special.nonzero().squeeze(1).tolist() == sorted(
        {tok.pad_token_id, tok.cls_token_id, tok.sep_token_id, tok.mask_token_id}
    )
    assert tok.unk_token_id in known.ordinary
    tokens = torch.full((4, 40), tok.unk_token_id)
    found = objectives.mask_tokens(tokens, known, (1.0, 0.0), seeded())
    assert (found.inputs == tok.mask_token_id).sum() == 4 * 6


def test_generator_samples_follow_its_softmax():
    tokens = torch.full((20_000, 1), 6)
    masked = objectives.Masked(
        tokens, tokens, torch.zeros_like(tokens), tokens, torch.ones(len(tokens), 1)
    )
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    torch.manual_seed(0)
    corrupted, _ = objectives.corrupt(tokens, masked, logits.expand(len(tokens), 1, 5))
    counts = np.bincount(corrupted[:, 0].numpy(), minlength=5)
    expected = logits.softmax(-1).double().numpy()
    assert stats.chisquare(counts, expected / expected.sum() * len(tokens)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)]
)
def test_the_mlm_loss_and_its_gradient_are_torchs_own(dtype, near):
    logits = 3 * torch.randn(4, 5, 300, generator=seeded())
    targets = torch.randint(0, 300, (4, 5), generator=seeded())
    weights = (torch.rand(4, 5, generator=seeded()) > 0.3).float()
    masked = objectives.Masked(targets, targets, targets, targets, weights)
    ours, theirs = (logits.to(dtype).requires_grad_() for _ in range(2))
    found = objectives.masked_loss(ours, masked, weights.sum())
    (1e4 * found).backward()  # as a loss is scaled for float16
    wanted = torch.nn.functional.cross_entropy(
        theirs.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    wanted = (wanted * weights.flatten()).sum() / weights.sum()
    (1e4 * wanted).backward()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=near, atol=near)
    broken = logits.clone()
    broken[0, 0, 0] = math.nan
    assert not math.isfinite(objectives.masked_loss(broken, masked, weights.sum()).item())


def test_the_rtd_loss_adds_fifty_discriminators():
    torch.manual_seed(0)
    task = objectives.build(registry.get("electra"), registry.get_size("tiny"), SIZE, 64)
    tokens = batch(8)
    masked = objectives.mask_tokens(tokens, VOCABULARY, (0.85, 0.0), seeded())
    found = task(tokens, masked)
    assert found["loss"].item() == pytest.approx(
        found["generator_loss"].item() + 50 * found["discriminator_loss"].item(), rel=1e-6
    )
    found["loss"].backward()
    # Nothing flows from the discriminator into the generator but through shared embeddings.
    assert all(p.grad is not None for p in task.model.discriminator_predictions.parameters())


class Marks:
    """The ids that a batch needs of a tokenizer."""

    pad_token_id, sep_token_id = 0, 3


def rows_of(packed, size, seed=7, **options):
    return pretrain.Rows(packed, Marks, size, seed, torch.device("cpu"), **options)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_batches_are_epochs_end_to_end(dtype):
    packed = np.arange(10, dtype=dtype)[:, None] + np.iinfo(dtype).max - 9
    packed = np.concatenate([packed, np.full_like(packed, 3)], 1)
    stream = [rows_of(packed, 4).batch(step)[:, 0] for step in range(2 * batches.POOL)]
    stream = torch.cat(stream)
    assert stream.dtype == torch.int64
    values, counts = np.unique(stream.numpy(), return_counts=True)
    assert len(values) == 10
    assert set(counts) == {len(stream) // 10, len(stream) // 10 + 1}
    assert not torch.equal(*stream.view(2, -1))


def test_of_a_small_corpus_one_batch_an_epoch_at_most_holds_a_row_twice():
    lengths = np.random.default_rng(0).integers(9, 129, 500)
    packed = np.where(np.arange(128) < lengths[:, None], 7, 0).astype("uint16")
    packed[:, 1:3] = np.stack([np.arange(500) // 100 + 1, np.arange(500) % 100 + 1], 1)
    rows = rows_of(packed, 128)
    twice = [len(rows.batch(step)[:, 1:3].unique(dim=0)) < 128 for step in range(39)]
    assert sum(twice) <= 10  # epochs: only where one ends and the next begins


def test_batches_have_no_padding_and_lose_little():
    rng = np.random.default_rng(0)
    count = 4 * 16 * batches.POOL
    lengths = np.where(rng.random(count) < 0.85, 128, rng.integers(5, 128, count))
    columns = np.arange(128)
    packed = np.where(columns < lengths[:, None], rng.integers(5, 60_000, (count, 128)), 0)
    packed[np.arange(count), lengths - 1] = 3
    packed = packed.astype("uint16")
    for multiple, lost in ((1, 0.02), (8, 0.03)):
        rows, seen = rows_of(packed, 16, multiple=multiple), 0
        for step in range(count // 16):
            batch = rows.batch(step)
            assert (batch != 0).all()
            assert (batch[:, -1] == 3).all()
            assert batch.shape[1] % multiple == 0 or batch.shape[1] < multiple
            seen += batch.numel()
        assert seen > (1 - lost) * lengths.sum()


def test_types_reach_the_model_and_are_trained(small_run):
    folder = small_run.folder / "tokenizer" / "wordpiece"
    tok, packed = tokenizer.load(folder), tokenizer.rows(folder)
    rows = pretrain.Rows(packed, tok, 16, 0, torch.device("cpu"))
    tokens = next(
        b for b in map(rows.batch, range(99)) if ((b == tok.sep_token_id).sum(1) > 1).all()
    )
    vocabulary = objectives.Vocabulary.of(tok, tokens.device)
    masked = objectives.mask_tokens(tokens, vocabulary, (0.85, 0.0), seeded())
    # transformers' own types of the same pairs
    texts = [tok.convert_ids_to_tokens(row) for row in tokens.tolist()]
    for row, types in zip(texts, masked.types.tolist(), strict=True):
        first = row.index(tok.sep_token) + 1
        assert types == [0] * first + [1] * (len(row) - first)
    for name, count in (("bert", 1), ("electra", 1), ("electra-deberta", 1)):
        torch.manual_seed(0)
        task = objectives.build(registry.get(name), registry.get_size("tiny"), len(tok), 64)
        tables = {id(p): p for n, p in task.named_parameters() if "token_type" in n}
        assert len(tables) == count  # generator and discriminator share it
        task(tokens, masked)["loss"].backward()
        (table,) = tables.values()
        assert table.shape[0] == 2
        assert (table.grad.abs().sum(1) > 0).all()


def take_step(model, dtype=torch.float32, steps=1):
    torch.manual_seed(0)
    task = objectives.build(registry.get(model), registry.get_size("tiny"), SIZE, 64, dropout=0.0)
    step = pretrain.Step(task.train(), VOCABULARY, dtype)
    losses = []
    for number in range(steps):
        torch.manual_seed(number)
        step.generator.manual_seed(number)
        losses.append(step(batch(16), 1e-3)["loss"].item())
    return losses, dict(task.named_parameters())


def test_bfloat16_follows_float32():
    for model in ("bert", "electra-deberta"):
        exact, _ = take_step(model, steps=8)
        half, _ = take_step(model, dtype=torch.bfloat16, steps=8)
        assert half == pytest.approx(exact, rel=0.02)
        assert exact[-1] < exact[0]


@pytest.mark.parametrize("correction", [False, True])
def test_the_optimiser_is_the_formula_of_its_source(correction):
    """A plain loop after google-research/electra's ``optimization.py``; Kingma and Ba's else."""
    recipe = registry.Recipe(bias_correction=correction, betas=(0.9, 0.98), epsilon=1e-3)
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=(3, 4)), rng.normal(size=(30, 3, 4)) * 10.0
    rates, decay = rng.uniform(0.01, 0.1, 30), 0.1
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    optimiser = loop.make_adamw([{"params": [parameter], "weight_decay": decay}], recipe)
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for step, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        optimiser.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        ones = (1 - 0.9**step, 1 - 0.98**step) if correction else (1.0, 1.0)
        update = (m / ones[0]) / (np.sqrt(v / ones[1]) + 1e-3)
        weight = weight - rate * (update + decay * weight)
        assert parameter.detach().numpy() == pytest.approx(weight, abs=1e-5)


def test_a_profile_may_correct_the_bias_in_all_models(small_run):
    for model, own in (("bert", False), ("electra-deberta", True)):
        for setting, wanted in (("source", own), ("always", True)):
            found = loop.recipe(pretraining(small_run, model, bias_correction=setting))
            assert replace(found, bias_correction=own) == registry.get(model).recipe
            assert found.bias_correction is wanted


def test_every_entry_is_as_its_source_or_says_why():
    """The table of the method page: a value that differs from its source's has a reason."""
    published = files.read_json(files.root() / "results" / "published.json")
    stated = set()
    for entry in published["training"]:
        for model in entry["models"]:
            here = asdict(registry.get(model).recipe)[entry["field"]]
            here = list(here) if isinstance(here, tuple) else here
            assert here == entry["value"] or entry["why"], f"{model}: {entry['field']}"
            stated.add((model, entry["field"]))
    aside = {"dropout", "batch", "rate", "end_rate", "sinusoids", "zero_types", "seed"}
    fields = set(asdict(registry.Recipe())) - aside  # those that change a profile
    assert stated == {(model, field) for model in published["table1"]["models"] for field in fields}


@pytest.mark.parametrize("module", [loop, registry])
def test_examples_give_what_they_say(module):
    found = doctest.testmod(module)
    assert found.failed == 0 < found.attempted


def test_a_finished_run_says_what_it_was(small_run):
    for model in small_run.models:
        manifest = files.read_json(small_run.folder / "models" / model / "manifest.json")
        log = pd.read_csv(small_run.folder / "models" / model / "log.csv")
        steps = 0 if model == "scratch" else small_run.pretrain_steps
        assert manifest["pretrain"]["steps"] == steps
        most = steps * small_run.pretrain_batch_size * (62 if model == "roberta" else 64)
        assert 0.7 * most <= manifest["pretrain"]["tokens"] <= most
        assert model != "roberta" or manifest["pretrain"]["tokens"] == most
        assert (manifest["pretrain"]["generator_parameters"] > 0) == ("electra" in model)
        assert len(log) == steps
        assert np.isfinite(log.to_numpy(dtype=float)).all()
        if steps:
            assert log["loss"].iloc[-1] < log["loss"].iloc[0]


def test_a_length_that_was_not_packed_is_an_error(small_run):
    with pytest.raises(UserError, match="max_length = 32: needs rows of 32"):
        pretrain.run(pretraining(small_run, "bert", max_length=32))


def test_precision_on_a_cpu():
    assert loop.choose_precision("auto", torch.device("cpu"))[0] == torch.float32
    assert loop.choose_precision("bfloat16", torch.device("cpu"))[0] == torch.bfloat16
    with pytest.raises(UserError, match="precision = 'float16'"):
        loop.choose_precision("float16", torch.device("cpu"))
