"""Fine-tuning: batches, truncation, rates, metrics, records."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from scipy import stats
from sklearn import metrics as sklearn_metrics

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import glue, metrics, tokenizer
from helpers.model import registry
from helpers.train import batches, finetune, heads, records


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_batch_is_what_the_tokenizer_pads(small_run, kind):
    tok = tokenizer.load(small_run.folder / "tokenizer" / kind)
    table = glue.load(small_run.folder, "rte", "train").head(7)
    found = batches.encode(table, glue.get("rte"), tok, 24)
    index = np.array([4, 0, 6, 2])
    batch = batches.collate(found, index, tok, torch.device("cpu"))
    texts = (table[name].iloc[index].tolist() for name in ("sentence1", "sentence2"))
    wanted = tok(
        *texts, padding=True, truncation="longest_first", max_length=24, return_tensors="pt"
    )
    assert set(batch) == set(wanted)
    for name, tensor in batch.items():
        assert torch.equal(tensor, wanted[name]), name


def spread_and_padding(epochs, lengths, labels, size):
    """Variance of a full batch's label mean over that of `size` rows at random, tokens with padding
    over those without, and the mean length in short batches over that of all rows."""
    means, padded, short = [], 0, []
    for found in epochs:
        means += [labels[index].mean() for index in found if len(index) == size]
        padded += sum(lengths[index].max() * len(index) for index in found)
        short += [lengths[index].mean() for index in found if len(index) < size]
    ratio = np.var(means) * size / labels.var()
    return ratio, padded / (len(epochs) * lengths.sum()), np.mean(short) / lengths.mean()


@pytest.mark.parametrize(("classes", "slope"), [(2, 0.13), (3, 0.06), (0, 0.1)])
def test_batches_by_length_hold_the_labels_of_a_plain_shuffle(classes, slope):
    """Length goes with the label (r = -0.25, -0.12, -0.20), as in STS-B and QQP."""
    rng, n, size = np.random.default_rng(0), 6000 - 5, 32
    labels = rng.integers(classes, size=n) if classes else rng.uniform(0, 5, n)
    scale = labels / labels.std()
    lengths = np.clip(np.exp(3.3 - slope * scale + 0.5 * rng.normal(size=n)), 5, 128).astype(int)
    mine, plain, by_length = [], [], []
    for epoch in range(30):
        generator = np.random.default_rng(epoch)
        mine.append(list(batches.batches(lengths, labels, size, generator)))
        order = generator.permutation(n)
        plain.append(np.split(order, range(size, n, size)))
        pools = np.split(order, range(32 * size, n, 32 * size))
        order = np.concatenate([pool[np.argsort(lengths[pool])] for pool in pools])
        by_length.append(np.split(order, range(size, n, size)))
    ratio, padding, short = spread_and_padding(mine, lengths, labels, size)
    assert 0.85 < ratio < 1.15
    assert 0.9 < spread_and_padding(plain, lengths, labels, size)[0] < 1.1
    naive = spread_and_padding(by_length, lengths, labels, size)
    assert naive[0] > 1.25
    assert padding < 1.1 * naive[1]
    assert 0.8 < short < 1.2 < 1.5 < naive[2]  # not always the longest rows


def test_every_row_weighs_as_much_whatever_its_batch(small_run):
    source = small_run.folder / "models" / "scratch" / "encoder"
    network, tok = heads.open_encoder(source, glue.get("cola"), 0.0), tokenizer.load(source)
    data = batches.encode(glue.load(small_run.folder, "cola", "train"), glue.get("cola"), tok, 48)
    values = small_run.stage(config.Finetune, model="scratch", finetune_batch_size=16)
    step = finetune.Step(config.Finetune(**values), network, torch.float32)
    labels, parts = torch.tensor(data.labels), []
    for index in np.split(np.arange(21), [16]):  # at rate 0 the weights stay
        batch = batches.collate(data, index, tok, torch.device("cpu"))
        parts.append(step(batch, labels[index], 0.0).item())
    whole = network(**batches.collate(data, np.arange(21), tok, torch.device("cpu"))).logits
    assert 16 * sum(parts) == pytest.approx(21 * finetune.loss(whole, labels[:21]).item(), rel=1e-5)


@pytest.mark.parametrize("model", ["bert", "roberta", "deberta", "electra-deberta"])
def test_learning_rates_shrink_towards_the_embeddings(small_run, model):
    source = small_run.folder / "models" / model / "encoder"
    network = heads.open_encoder(source, glue.get("cola"), 0.1)
    groups = heads.layer_rates(network, 1.0, 0.5, weight_decay=0.1)
    # Two layers: embeddings at depth 0, layers at 1 and 2, the head at 4; vectors, then matrices.
    rates = [0.5**4, 0.5**3, 0.5**2, 1.0]
    assert [group["base"] for group in groups] == [rate for rate in rates for _ in range(2)]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1] * 4
    assert {len(p.shape) for group in groups[1::2] for p in group["params"]} == {2}
    assert {len(p.shape) for group in groups[::2] for p in group["params"]} == {1}
    everything = {id(p) for p in network.parameters()}
    assert {id(p) for group in groups for p in group["params"]} == everything
    embedding = registry.encoder(network).embeddings.word_embeddings.weight
    assert any(p is embedding for p in groups[1]["params"])


@pytest.mark.parametrize("model", ["bert", "roberta", "deberta", "electra-deberta"])
def test_a_head_reads_what_it_would_read_of_the_whole_last_layer(small_run, model):
    source, task = small_run.folder / "models" / model / "encoder", glue.get("mnli")
    ours = finetune.open_encoder(source, task, 0.0)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    stock.load_state_dict(ours.state_dict())
    mask = (torch.arange(20) < torch.tensor([[9], [20], [20], [20]])).long()
    batch = {"input_ids": torch.randint(5, 100, (4, 20)), "attention_mask": mask}
    logits = [network.train()(**batch).logits for network in (ours, stock)]
    for one in logits:
        one.square().sum().backward()
    torch.testing.assert_close(*logits)
    for (name, one), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5, msg=name)


def test_a_linear_head_is_googles(small_run):
    source = small_run.folder / "models" / "bert" / "encoder"
    network = heads.open_encoder(source, glue.get("mnli"), 0.1, "linear").eval()
    tokens = torch.arange(24).view(2, 12)
    first = registry.encoder(network)(tokens).last_hidden_state[:, 0]
    weight, bias = network.classifier.output.weight, network.classifier.output.bias
    assert torch.allclose(network(tokens).logits, first @ weight.T, atol=1e-6)
    limit = (6 / (first.shape[1] + 3)) ** 0.5  # Glorot and Bengio 2010, uniform
    assert 0.9 * limit < weight.abs().max() <= limit
    assert not bias.any()


@pytest.mark.parametrize(
    ("kind", "config", "embeddings", "head"),
    [
        ("Bert", {}, "bert.embeddings.", ("bert.pooler.", "classifier.")),
        ("Electra", {"embedding_size": 8}, "electra.embeddings", ("classifier.",)),
        (
            "DebertaV2",
            {"relative_attention": True, "norm_rel_ebd": "layer_norm"},
            ("deberta.embeddings.", "deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm"),
            ("pooler.", "classifier."),
        ),
        (
            "RobertaPreLayerNorm",
            {},
            "roberta_prelayernorm.embeddings.",
            ("roberta_prelayernorm.LayerNorm.", "classifier."),
        ),
    ],
)
def test_what_follows_the_layers_learns_at_the_heads_rate(kind, config, embeddings, head):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = getattr(transformers, f"{kind}Config")(vocab_size=20, **shape, **config)
    network = getattr(transformers, f"{kind}ForSequenceClassification")(made)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = heads.layer_rates(network, 1.0, 0.5)
    found = {names[id(p)]: group["base"] for group in groups for p in group["params"]}
    for name, rate in found.items():
        layer = name.partition(".layer.")[2]
        if layer:
            assert rate == {"0": 0.5**3, "1": 0.5**2}[layer[0]], name
        else:
            assert rate == (0.5**4 if name.startswith(embeddings) else 1.0), name
            assert name.startswith(embeddings) or name.startswith(head), name


def test_losses_are_cross_entropy_or_squared_error():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    by_hand = np.mean([np.log(1 + np.exp(-2)), np.log(1 + np.exp(1))])
    assert finetune.loss(logits, labels).item() == pytest.approx(by_hand)
    assert finetune.loss(torch.tensor([[0.5]]), torch.tensor([0.25])).item() == 0.0625


def draw(task, seed=0, n=200):
    rng = np.random.default_rng(seed)
    if not task.labels:
        truth = rng.uniform(0, 5, n)
        return truth + rng.normal(0, 1, n), truth
    truth = rng.integers(0, len(task.labels), n)
    return np.where(rng.random(n) < 0.7, truth, rng.integers(0, len(task.labels), n)), truth


@pytest.mark.parametrize("name", glue.TASKS)
def test_metrics_agree_with_scikit_learn_and_scipy_and_are_never_nan(name):
    task = glue.get(name)
    predictions, truth = draw(task)
    wanted = {
        "matthews_correlation": sklearn_metrics.matthews_corrcoef,
        "accuracy": sklearn_metrics.accuracy_score,
        "f1": sklearn_metrics.f1_score,
        "spearman": lambda t, p: stats.spearmanr(t, p).statistic,
        "pearson": lambda t, p: stats.pearsonr(t, p).statistic,
    }
    score, found, note = metrics.score(name, predictions, truth)
    for key, value in found.items():
        assert value == pytest.approx(wanted[key](truth, predictions), abs=1e-12)
    assert (score, note) == (100 * found[task.metric], "")
    assert ("f1" in found) == (name in ("mrpc", "qqp"))
    score, found, note = metrics.score(name, np.zeros_like(truth), truth)
    assert note == "constant prediction"
    assert all(np.isfinite(value) for value in found.values())
    share = 100 * (truth == 0).mean()
    assert score == pytest.approx(share if task.metric == "accuracy" else 0.0)
    score, found, note = metrics.score(name, truth, np.zeros_like(truth))  # labels all alike
    assert np.isfinite([score, *found.values()]).all()
    assert note == ""


def test_predictions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.score("stsb", np.array([1.0, np.nan]), np.array([1.0, 2.0]))


def stage(run, **changes):
    values = run.stage(config.Finetune, model="scratch", tasks=["cola"], seeds=[0])
    return config.Finetune(**(values | changes))


def test_records_tell_the_score_and_hold_the_predictions(small_run):
    found = records.read_all(small_run.folder, ["roberta", "scratch"], list(glue.TASKS))
    assert len(found) == 6
    for record in found:
        task = glue.get(record["task"])
        path = records.folder(small_run.folder, record["model"], record["task"])
        table = pd.read_parquet(path / "seed-0.parquet")
        dev = table[table["split"] == task.validation]
        assert len(dev) == record["rows"][task.validation]
        labels = glue.load(small_run.folder, record["task"], task.validation)
        assert dev["idx"].tolist() == labels["idx"].tolist()
        again = metrics.score(record["task"], dev["prediction"], labels["label"])[0]
        assert record["score"] == pytest.approx(again)
        mismatched = "mismatched_accuracy" in record["metrics"]
        assert mismatched == (record["task"] == "mnli")
        assert record["source"] == "embedded"
        assert not record["complete"]
        assert record["finetune"]["steps"] > 0
        assert (record["pretrain"]["tokens"] == 0) == (record["model"] == "scratch")


def test_a_finished_seed_is_kept_and_a_new_one_is_the_only_work(small_run):
    path = records.folder(small_run.folder, "scratch", "cola") / "seed-0.json"
    before = path.stat().st_mtime_ns
    finetune.run(stage(small_run, seeds=[0, 1]))
    assert path.stat().st_mtime_ns == before
    # The same parameters give the same predictions, whatever ran before.
    one = path.with_name("seed-1.parquet").read_bytes()
    path.with_name("seed-1.json").unlink()
    finetune.run(stage(small_run, seeds=[1]))
    assert path.with_name("seed-1.parquet").read_bytes() == one
    for other in path.parent.glob("seed-1.*"):  # other tests have this run as it was
        other.unlink()
    finetune.run(stage(small_run, seeds=[0]))


def test_a_record_of_another_version_is_made_again(small_run):
    path = records.folder(small_run.folder, "scratch", "cola") / "seed-0.json"
    whole = json.loads(path.read_text())
    old = whole | {"schema": 1, "spec": "0" * 64}
    del old["pretrain"]["seconds"]
    path.write_text(json.dumps(old))
    finetune.run(stage(small_run, seeds=[0]))
    assert records.read(path)["spec"] == whole["spec"]
    assert records.read(path)["predictions"] == whole["predictions"]


def test_an_edited_record_is_refused(small_run):
    path = records.folder(small_run.folder, "scratch", "stsb") / "seed-0.json"
    whole = path.read_text()
    try:
        path.write_text(whole.replace('"seed": 0', '"seed": 4'))
        with pytest.raises(UserError, match=r"seed-0\.json: missing or changed"):
            records.read_all(small_run.folder, ["scratch"], ["stsb"])
        with pytest.raises(UserError, match=r"seed-0\.json: changed since its manifest was"):
            finetune.run(stage(small_run, tasks=["stsb"], seeds=[0]))
        assert '"seed": 4' in path.read_text()
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "scrach"}, "did you mean scratch"),
        ({"tasks": ["cola", "wnli"]}, "task = 'wnli'"),
        ({"max_length": 128}, "max_length = 128: scratch has 64 positions"),
        ({"profile": "empty"}, r"run notebooks/03_pretrain\.ipynb first with model = scratch"),
    ],
)
def test_what_cannot_be_fine_tuned(small_run, changes, says):
    with pytest.raises(UserError, match=says):
        finetune.run(stage(small_run, **changes))
