"""Held-out documents: never trained on, measured alike by every run, and what is measured."""

import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from makers import data_stage, pretraining
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from helpers.base import files
from helpers.data import corpus, packing, tokenizer
from helpers.model import registry
from helpers.train import held_out, objectives, pretrain

CPU = torch.device("cpu")


def test_documents_are_held_out_by_their_text(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["one", "two", "six"], 40)) + f" {n}." for n in range(4000)]
    texts += texts[:500]  # copies
    made = {}
    for name, order in (("one", texts), ("other", texts[::-1])):
        folder = tmp_path / name
        (folder / "corpus").mkdir(parents=True)
        pq.write_table(pa.table({"text": order}), folder / "corpus" / "a.parquet")
        parameters = data_stage(tmp_path, folder).model_copy(update={"profile": name})
        manifest = corpus.run(parameters)
        place = parameters.folder / "data" / "corpus"
        seen, unseen = list(corpus.read(place)), list(corpus.read(place / "held_out"))
        assert not set(seen) & set(unseen)
        assert sorted(seen + unseen) == sorted(texts)
        assert (manifest["documents"], manifest["held_out"]["documents"]) == (
            len(seen),
            len(unseen),
        )
        assert manifest["held_out"]["bytes"] == sum(map(len, unseen)) >= 200_000 * 0.2
        made[name] = set(unseen)
    # All of it is within the first 200 kB; the first document of a corpus is trained on.
    assert made["one"] ^ made["other"] <= {texts[0], texts[-1]}


def test_entropies_are_those_of_counts():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), 30, p=[0.3, 0.3, 0.2, 0.1, 0.05, 0.05]))] * 3
    tok = tokenizer.train("bpe", 300, lambda: texts)
    seen, unseen = (rng.integers(40, 60, size) for size in ((50, 12), (9, 12)))
    for rows in (seen, unseen):
        rows[:, 0], rows[:, -1] = tok.cls_token_id, tok.sep_token_id
    found = packing.count_entropies(seen, unseen, tok)
    # The same, word by word.
    once = Counter(seen[:, 1:-1].ravel().tolist())
    pairs = Counter((int(a), int(b)) for row in seen for a, b in itertools.pairwise(row))
    pairs = {pair: n for pair, n in pairs.items() if pair[1] != tok.sep_token_id}
    total, kinds = Counter(), Counter()
    for (left, _), n in pairs.items():
        total[left] += n
        kinds[left] += 1
    size = len(tok) - len(tok.all_special_ids)
    alone = {w: (once[w] + 1) / (once.total() + size) for w in range(len(tok))}
    one, two = [], []
    for row in unseen.tolist():
        for left, w in itertools.pairwise(row[:-1]):
            n, t = total[left], kinds[left]
            mixed = (pairs.get((left, w), 0) + t * alone[w]) / (n + t) if n else alone[w]
            one.append(-math.log(alone[w]))
            two.append(-math.log(mixed))
    assert found["unigram"] == pytest.approx(np.mean(one))
    assert found["bigram"] == pytest.approx(np.mean(two))


@pytest.fixture(scope="module")
def read(small_run):
    """Two batches of the small run's held-out rows, their vocabulary and tokenizer."""
    folder = small_run.folder / "tokenizer" / "wordpiece"
    tok = tokenizer.load(folder)
    vocabulary = objectives.Vocabulary.of(tok, CPU)
    rows = tokenizer.rows(folder, held_out=True)
    made = held_out.HeldOut(rows, tok, 10**9, vocabulary)
    return made.batches[:2], vocabulary, tok


def build(name, tok):
    torch.manual_seed(0)
    task = objectives.build(registry.get(name), registry.get_size("tiny"), len(tok), 64, 0.5)
    return task.train()


def test_what_is_measured_is_transformers_own(read):
    batches, vocabulary, tok = read
    task = build("bert", tok)
    seen, model = [], task.model.eval()
    handle = model.base_model.register_forward_pre_hook(
        lambda _, given, more: seen.append((given[0], more["token_type_ids"])), with_kwargs=True
    )
    found = held_out.evaluate(task.train(), batches, vocabulary, torch.float32)
    handle.remove()
    model.eval()
    losses = {"loss": [], "shuffled": []}
    for number, tokens in enumerate(batches):
        (masked, types), (mixed, _) = seen[3 * number :][:2]
        hidden = masked == tok.mask_token_id
        # Every chosen token is masked; shuffling moves the visible ones of a row and no others.
        assert torch.equal(masked[~hidden], tokens[~hidden])
        assert abs(hidden.sum() / (~vocabulary.special[tokens]).sum() - 0.15) < 0.03
        assert torch.equal(mixed == tok.mask_token_id, hidden)
        assert torch.equal(mixed.sort(1).values, masked.sort(1).values)
        still = vocabulary.special[masked]
        assert torch.equal(mixed[still], masked[still])
        assert (mixed != masked)[~still].float().mean() > 0.5
        labels = torch.where(hidden, tokens, -100)
        for name, inputs in (("loss", masked), ("shuffled", mixed)):
            with torch.no_grad():
                logits = model(inputs, token_type_ids=types).logits
            losses[name] += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            )[labels.flatten() >= 0].tolist()
    for name, values in losses.items():
        assert found[f"held_out_{name}"] == pytest.approx(np.mean(values), rel=1e-5)
    with torch.no_grad():
        states = model.base_model(batches[0], token_type_ids=seen[0][1]).last_hidden_state
    values = np.linalg.eigvalsh(np.cov(states.flatten(0, 1).numpy().T.astype(float))).clip(1e-15)
    assert found["effective_rank"] == pytest.approx(np.exp(stats.entropy(values)), rel=1e-3)


def test_detection_is_measured_against_a_constant_guess():
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.1).astype(np.float32)
    scores = (rng.normal(size=2000) + labels - 2).astype(np.float32)
    found = held_out.detection(torch.from_numpy(scores), torch.from_numpy(labels))
    assert found["held_out_auc"] == pytest.approx(roc_auc_score(labels, scores))
    chance = 1 / (1 + np.exp(-scores.astype(float)))
    constant = log_loss(labels, np.full(2000, labels.mean()))
    assert found["held_out_excess"] == pytest.approx(log_loss(labels, chance) - constant, abs=1e-5)
    nothing = held_out.detection(torch.zeros(4), torch.zeros(4))
    assert all(map(math.isnan, nothing.values()))


def test_measuring_repeats_and_leaves_training_as_it_was(read, small_run, own_run, monkeypatch):
    batches, vocabulary, tok = read
    task = build("electra-deberta", tok)
    once, again = (held_out.evaluate(task, batches, vocabulary, torch.float32) for _ in range(2))
    assert once == again
    assert task.training
    # The weights are those of a run that never measures.
    monkeypatch.setattr(pretrain._Upkeep, "maybe_evaluate", lambda *_: None)
    pretrain.run(pretraining(own_run, "electra-deberta"))
    without, measured = (
        files.sha256(run.folder / "models" / "electra-deberta" / "encoder" / "model.safetensors")
        for run in (own_run, small_run)
    )
    assert without == measured


def test_what_cannot_be_measured_is_left_out(own_run, monkeypatch):
    nothing = {"held_out_auc": math.nan, "held_out_excess": math.nan}
    monkeypatch.setattr(held_out, "detection", lambda *_: nothing)
    found = pretrain.run(pretraining(own_run, "electra"))["held_out"]
    assert "loss" in found and not {"auc", "excess"} & found.keys()


def test_every_pretraining_says_what_its_model_makes_of_unseen_text(small_run):
    for model in small_run.models:
        folder = small_run.folder / "models" / model
        manifest, log = files.read_json(folder / "manifest.json"), pd.read_csv(folder / "log.csv")
        found = manifest["held_out"]
        assert found["bigram"] < found["unigram"]
        if model == "scratch":
            continue
        assert log["held_out_loss"].iloc[-1] == pytest.approx(found["loss"])
        assert log["held_out_loss"].notna().sum() >= 10
        about = files.read_json(
            small_run.folder / "tokenizer" / registry.get(model).tokenizer / "manifest.json"
        )["held_out"]
        bits = found["loss"] / math.log(2) * about["tokens"] / about["bytes"]
        assert found["bits_per_byte"] == pytest.approx(bits)
        assert ("auc" in found) == ("electra" in model)
