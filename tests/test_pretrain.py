"""Objectives: masking, sampling, labels; and runs that are cut, repeated or wrong."""

import doctest
import filecmp
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from makers import pretraining, small_profile
from scipy import stats

from helpers.base import files, progress
from helpers.base.errors import UserError
from helpers.data import tokenizer
from helpers.model import registry
from helpers.train import loop, objectives, pretrain

SIZE, SPECIALS = 50, [0, 1, 2, 3, 4]


@pytest.fixture
def vocabulary():
    special = torch.zeros(SIZE, dtype=torch.bool)
    special[SPECIALS] = True
    return objectives.Vocabulary(4, special, torch.arange(5, SIZE), 3)


def batch(rows=400, length=64):
    tokens = torch.randint(5, SIZE, (rows, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1], tokens[::2, 20] = 2, 3, 3
    return tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("masking", [(0.85, 0.0), (0.8, 0.1)])
def test_masking_rates(vocabulary, masking):
    tokens = batch()
    masked = objectives.mask_tokens(tokens, vocabulary, masking, seeded())
    chosen = masked.weights > 0
    ordinary = int((~vocabulary.special[tokens]).sum())
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


def test_a_row_of_specials_loses_nothing(vocabulary):
    tokens = torch.full((2, 16), 3)
    tokens[1, 5] = 9
    masked = objectives.mask_tokens(tokens, vocabulary, (1.0, 0.0), seeded())
    assert torch.equal(masked.inputs[0], tokens[0])
    assert masked.weights[0].sum() == 0
    assert masked.weights[1].sum() == 1
    assert masked.inputs[1, 5] == 4


def test_masks_are_dynamic_and_seeded(vocabulary):
    tokens = batch()
    draw = [objectives.mask_tokens(tokens, vocabulary, (0.8, 0.1), seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0].inputs, draw[1].inputs)
    assert not torch.equal(draw[0].inputs, draw[2].inputs)


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


def test_a_generator_that_is_always_right_leaves_nothing_to_find(vocabulary):
    tokens = batch()
    masked = objectives.mask_tokens(tokens, vocabulary, (0.85, 0.0), seeded())
    right = torch.nn.functional.one_hot(masked.targets, SIZE) * 100.0
    corrupted, labels = objectives.corrupt(tokens, masked, right)
    assert torch.equal(corrupted, tokens)
    assert labels.sum() == 0


def test_the_mlm_loss_is_the_mean_over_chosen_tokens():
    logits = torch.randn(2, 3, 7, generator=seeded())
    targets = torch.tensor([[1, 2, 3], [4, 5, 6]])
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    masked = objectives.Masked(targets, targets, targets, targets, weights)
    by_hand = [
        -math.log(math.exp(logits[i, j, t]) / sum(math.exp(x) for x in logits[i, j]))
        for i, j, t in [(0, 0, 1), (0, 1, 2), (1, 0, 4)]
    ]
    found = objectives.masked_loss(logits, masked, weights.sum()).item()
    assert found == pytest.approx(np.mean(by_hand), rel=1e-5)


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


def test_the_rtd_loss_adds_fifty_discriminators(vocabulary):
    torch.manual_seed(0)
    task = objectives.build(registry.get("electra"), registry.get_size("tiny"), SIZE, 64)
    tokens = batch(8)
    masked = objectives.mask_tokens(tokens, vocabulary, (0.85, 0.0), seeded())
    found = task(tokens, masked, masked.weights.sum(), tokens.numel())
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
    batches = [rows_of(packed, 4).batch(step)[:, 0] for step in range(2 * batches_of_a_pool())]
    stream = torch.cat(batches)
    assert stream.dtype == torch.int64
    values, counts = np.unique(stream.numpy(), return_counts=True)
    assert len(values) == 10
    assert set(counts) == {len(stream) // 10, len(stream) // 10 + 1}
    assert not torch.equal(*stream.view(2, -1))


def batches_of_a_pool():
    from helpers.train import batches

    return batches.POOL


def test_batches_have_no_padding_and_lose_little():
    rng = np.random.default_rng(0)
    count = 4 * 16 * batches_of_a_pool()
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


def test_a_corpus_on_the_device_gives_the_same_batches(monkeypatch):
    packed = np.random.default_rng(0).integers(1, 2**16, (30, 8)).astype("uint16")
    mapped = rows_of(packed, 7)
    monkeypatch.setattr(loop, "choose_place", lambda size, device: (True, "as asked"))
    resident = rows_of(packed, 7)
    assert resident.resident is not None
    for step in (0, 4, 99):
        assert torch.equal(resident.batch(step), mapped.batch(step))
        assert resident.batch(step).max() <= 65535


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
        task(tokens, masked, masked.weights.sum(), tokens.numel())["loss"].backward()
        (table,) = tables.values()
        assert table.shape[0] == 2
        assert (table.grad.abs().sum(1) > 0).all()


def take_step(model, mode="none", most=0, dtype=torch.float32, steps=1):
    torch.manual_seed(0)
    task = objectives.build(registry.get(model), registry.get_size("tiny"), SIZE, 64, dropout=0.0)
    special = torch.zeros(SIZE, dtype=torch.bool)
    special[SPECIALS] = True
    vocabulary = objectives.Vocabulary(4, special, torch.arange(5, SIZE), 3)
    step = pretrain.Step(task, vocabulary, dtype, 1.0, most, mode)
    task.train()
    losses = []
    for number in range(steps):
        torch.manual_seed(number)
        step.generator.manual_seed(number)
        losses.append(step(batch(16), 1e-3)["loss"].item())
    return losses, dict(task.named_parameters())


@pytest.mark.parametrize("rows", [4, 5])
def test_accumulated_passes_are_one_step(rows):
    # MLM draws nothing but its masks, which are those of the whole batch.
    whole, one = take_step("deberta", steps=3)
    parts, other = take_step("deberta", most=rows * 64, steps=3)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, parameter in one.items():
        torch.testing.assert_close(other[name], parameter, rtol=1e-3, atol=2e-4)


def test_accumulated_passes_weigh_tokens_alike():
    # Half the rows have one ordinary token: a mean of the passes' means would count it 9 times.
    tokens = batch(8)
    tokens[:4] = 3
    tokens[:4, 5] = 9
    torch.manual_seed(0)
    task = objectives.build(registry.get("bert"), registry.get_size("tiny"), SIZE, 64, dropout=0.0)
    special = torch.zeros(SIZE, dtype=torch.bool)
    special[SPECIALS] = True
    vocabulary = objectives.Vocabulary(4, special, torch.arange(5, SIZE), 3)
    found = []
    for most in (0, 4 * 64):
        step = pretrain.Step(task, vocabulary, most=most)
        step.generator.manual_seed(0)
        found.append(step(tokens, 1e-30)["loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_bfloat16_follows_float32():
    for model in ("bert", "electra-deberta"):
        exact, _ = take_step(model, steps=8)
        half, _ = take_step(model, dtype=torch.bfloat16, steps=8)
        assert half == pytest.approx(exact, rel=0.02)
        assert exact[-1] < exact[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "deberta", "electra-deberta"])
def test_a_compiled_step_is_the_same_step(model):
    eager, one = take_step(model, steps=2)
    compiled, other = take_step(model, mode="default", steps=2)
    # Samples of a generator come from other random numbers.
    assert compiled == pytest.approx(eager, rel=1e-4 if "electra" not in model else 0.02)
    assert len(one) == len(other)


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


def test_warm_up_and_decay_multiplied_are_the_sources_product():
    """(1 - s / T) min(1, s / W) of google-research/electra; the ramp is one step ahead here."""
    total, warmup = 50, 10
    factors = [loop.schedule(s, warmup, total, ramp_times_decay=True) for s in range(total)]
    plain = [(1 - s / total) * min(1, (s + 1) / warmup) for s in range(total)]
    assert factors == pytest.approx(plain)
    assert loop.schedule(0, 0, 10, ramp_times_decay=True) == 1.0


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
    changes_to_a_profile = {"dropout", "batch", "rate", "end_rate", "seed"}
    fields = set(asdict(registry.Recipe())) - changes_to_a_profile
    assert stated == {(model, field) for model in published["table1"]["models"] for field in fields}


def test_the_schedule_is_as_its_example_says():
    assert doctest.testmod(loop) == (0, 2)


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


def test_finished_work_is_not_done_again(small_run):
    path = small_run.folder / "models" / "bert" / "encoder" / "model.safetensors"
    before = path.stat().st_mtime_ns
    pretrain.run(pretraining(small_run, "bert"))
    assert path.stat().st_mtime_ns == before


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("model", ["bert", "electra-deberta"])
def test_a_run_that_was_cut_ends_with_the_same_bytes(small_run, tmp_path, monkeypatch, model):
    other = small_profile(tmp_path)
    other.folder.mkdir()
    (other.folder / "tokenizer").symlink_to(small_run.folder / "tokenizer")
    real = progress.bar

    for cut in (6, 9):

        def bar(*arguments, cut=cut, **options):
            made = real(*arguments, **options)
            update = made.update

            def counted(n=1):
                if made.n >= cut:
                    raise Cut
                return update(n)

            made.update = counted
            return made

        monkeypatch.setattr(progress, "bar", bar)
        with pytest.raises(Cut):
            pretrain.run(pretraining(other, model))
    monkeypatch.setattr(progress, "bar", real)
    pretrain.run(pretraining(other, model))
    for name in ("encoder/model.safetensors", "log.csv"):
        whole = small_run.folder / "models" / model / name
        assert filecmp.cmp(whole, other.folder / "models" / model / name, shallow=False), name
    assert not list((other.folder / "models" / model).glob("checkpoint-*"))


def test_a_stage_without_the_one_before_says_so(tmp_path):
    with pytest.raises(UserError, match=r"run notebooks/02_tokenizer.ipynb first"):
        pretrain.run(pretraining(small_profile(tmp_path), "bert"))


def test_a_length_that_was_not_packed_is_an_error(small_run):
    with pytest.raises(UserError, match="max_length = 32: needs rows of 32"):
        pretrain.run(pretraining(small_run, "bert", max_length=32))


def test_precision_on_a_cpu():
    assert loop.choose_precision("auto", torch.device("cpu"))[0] == torch.float32
    assert loop.choose_precision("bfloat16", torch.device("cpu"))[0] == torch.bfloat16
    with pytest.raises(UserError, match="precision = 'float16'"):
        loop.choose_precision("float16", torch.device("cpu"))


def test_packed_rows_are_the_corpus(small_run):
    from helpers.data import corpus

    folder = small_run.folder / "tokenizer" / "bpe"
    tok, rows = tokenizer.load(folder), tokenizer.rows(folder)
    stream = rows[:, 1:-1].ravel()
    texts = corpus.read(small_run.folder / "data" / "corpus")
    there = [t for text in texts for t in [*tok(text)["input_ids"][1:]]]
    assert stream.tolist() == there[: len(stream)]
