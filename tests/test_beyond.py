"""The recipe study: what a change changes in pre-training, and what its table makes of noise."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from makers import make_run
from safetensors.numpy import load_file
from scipy import stats

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.model import registry
from helpers.pages import recipes, view
from helpers.train import finetune, loop, objectives, pretrain

TASKS = ["cola", "rte"]


def train(profile, model, **changes):
    values = profile.stage(config.Pretrain, model=model) | changes
    manifest = pretrain.run(config.Pretrain(**values))
    folder = profile.folder / "models" / model
    return manifest, load_file(folder / "encoder" / "model.safetensors"), folder


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_recipe_changes_what_it_says_and_reads_as_many_tokens(own_run):
    plain, weights, folder = train(own_run, "electra-deberta")
    base = pd.read_csv(folder / "log.csv")
    recipe = plain["specification"]["model"]["recipe"]
    assert (recipe["epsilon"], recipe["bias_correction"], recipe["weight_decay"]) == (
        1e-8,
        True,
        0.1,
    )
    large, _, folder = train(own_run, "electra-deberta+large-batch")
    log = pd.read_csv(folder / "log.csv")
    assert large["pretrain"]["steps"] == plain["pretrain"]["steps"] / 4
    assert large["pretrain"]["tokens"] == pytest.approx(plain["pretrain"]["tokens"], rel=0.3)
    # Equal but for the decay, which is coarser in a quarter of the steps.
    assert log["rate"].max() == pytest.approx(2 * base["rate"].max(), rel=0.1)
    _, _, folder = train(own_run, "electra-deberta+constant-rate")
    log = pd.read_csv(folder / "log.csv")
    assert log["rate"].iloc[-1] == own_run.pretrain_learning_rate > base["rate"].iloc[-1]
    assert not same(weights, train(own_run, "electra-deberta+seed-1")[1])


def test_a_recipe_is_the_parameter_it_stands_for(own_run, monkeypatch):
    seeded = train(own_run, "electra-deberta+seed-1")[1]
    assert same(seeded, train(own_run, "electra-deberta", pretrain_seed=1)[1])
    undisturbed = train(own_run, "electra-deberta+no-dropout", pretrain_dropout=0.5)[1]
    assert same(undisturbed, train(own_run, "electra-deberta", pretrain_dropout=0.0)[1])
    spec = replace(registry.REGISTRY["bert"], recipe=registry.Recipe(rate=1000.0))
    monkeypatch.setitem(registry.REGISTRY, "hot", spec)
    with pytest.raises(UserError, match=r"recipe of hot: pretrain_learning_rate = 1\.?5?"):
        train(own_run, "hot")


def test_replaced_token_detection_may_have_its_own_rate(own_run):
    own = {"rtd_learning_rate": 3e-4}
    named, _, folder = train(own_run, "electra", pretrain_learning_rate=3e-4)
    peak = pd.read_csv(folder / "log.csv")["rate"].max()
    shutil.rmtree(folder)
    electra, _, _ = train(own_run, "electra", **own)
    assert pd.read_csv(folder / "log.csv")["rate"].max() == peak > 0.8 * 3e-4
    # Made anew, the same bytes: not another specification, nor other files.
    assert (electra["spec"], electra["files"]) == (named["spec"], named["files"])
    high = train(own_run, "electra+high-rate", **own)[2]
    assert pd.read_csv(high / "log.csv")["rate"].max() == pytest.approx(4 * peak)
    bert = train(own_run, "bert")[0]
    assert train(own_run, "bert", **own)[0]["spec"] == bert["spec"]
    with pytest.raises(UserError, match=r"rtd_learning_rate = 0\.9: electra diverges"):
        train(own_run, "electra", rtd_learning_rate=0.9, pretrain_warmup=0.0)


def test_the_rate_may_end_above_zero():
    assert loop.schedule(12, 4, 12, end=0.25) == 0.25
    assert loop.schedule(8, 4, 12, end=0.25) == pytest.approx(0.625)
    assert loop.schedule(1, 4, 12, end=0.25) == loop.schedule(1, 4, 12)


@pytest.mark.parametrize("change", registry.CHANGES)
def test_a_change_leaves_the_encoder_as_large_as_it_was(change):
    base = "roberta" if registry.CHANGES[change].only[0] == "architecture" else "electra-deberta"
    sizes = []
    for name in (base, f"{base}+{change}"):
        task = objectives.build(registry.get(name), registry.get_size("small"), 200, 64)
        sizes.append(registry.count(registry.encoder(task.model)))
    assert registry.get(f"{base}+{change}") != registry.get(base)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("bert+no-dropuot", "no such change; did you mean no-dropout"),
        ("bert+tied-softmax", "tied-softmax needs a model whose objective is rtd"),
        ("deberta+random-positions", "needs a model whose architecture is bert or roberta"),
        ("deberta+random-types", "needs a model whose types is 1 or 2"),
        ("bert+no-dropout+no-dropout", "a change stands there twice"),
        ("bert+seed-1+seed-2", "a change stands there twice"),
        ("bert+high-rate+large-batch", "large-batch changes what another change does"),
        ("brt+no-dropout", "not in the registry; did you mean bert"),
        ("bert+", "no such change"),
    ],
)
def test_a_change_that_cannot_be_made_is_one_line(name, line):
    with pytest.raises(UserError, match=line) as caught:
        registry.get(name)
    assert name.split("+")[0] in str(caught.value)


def test_the_pre_ln_encoder_is_trained_to_its_end(own_run):
    train(own_run, "roberta+pre-ln")
    values = own_run.stage(config.Finetune, model="roberta+pre-ln", tasks=["cola"], seeds=[0])
    (record,) = finetune.run(config.Finetune(**values))
    assert record["model"] == "roberta+pre-ln"
    encoder = own_run.folder / "models" / "roberta+pre-ln" / "encoder" / "config.json"
    assert files.read_json(encoder)["model_type"] == "roberta-prelayernorm"


def make_study(bits, scores=None):
    """A study of one task from held-out bits per byte by name."""
    found = []
    for name, value in bits.items():
        base, changes, seed = registry.parts(name)
        found.append(
            {
                "name": name,
                **{"base": base, "changes": list(changes), "seed": seed, "bits_per_byte": value},
                **{"auc": None, "effective_rank": 9.0},
                "flops": 0.5e9 if "quarter-generator" in changes else 1e9,
                "scores": {"cola": (scores or {}).get(name, [40.0])},
            }
        )
    return {"models": found}


def test_a_change_is_compared_seed_by_seed():
    base, change = "electra-deberta", "electra-deberta+quarter-generator"
    bits = {f"{base}+seed-{k}": value for k, value in [(1, 2.0), (2, 2.2)]} | {base: 1.9}
    bits |= {f"{change}+seed-{k}": value for k, value in [(2, 2.1), (1, 1.95)]} | {change: 1.8}
    bits |= {f"{base}+no-dropout": 1.95}
    study = make_study(bits, {base: [40.0, 42.0], change: [44.0, 43.0]})
    found = recipes.effects(study).set_index("changes")
    assert list(found.index) == ["", "quarter-generator", "no-dropout"]
    row, gains = found.loc["quarter-generator"], [100 * x for x in (0.1 / 1.9, 0.05 / 2, 0.1 / 2.2)]
    assert row["pairs"] == 3
    assert row["gain"] == pytest.approx(np.mean(gains))
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert (row["low"], row["high"]) == pytest.approx((row["gain"] - half, row["gain"] + half))
    assert row["p"] == pytest.approx(2 * stats.t.sf(np.mean(gains) / stats.sem(gains), 2))
    assert row["points"] == pytest.approx((2.5 + 0 + 0) / 3)
    assert row["flops"] == 0.5
    single = found.loc["no-dropout"]
    assert single["gain"] == pytest.approx(-100 * 0.05 / 1.9)
    assert np.isnan(single[["low", "high", "p"]].astype(float)).all()


def test_a_study_is_measured_from_records_of_every_seed(tmp_path):
    names = ["electra-deberta", "electra-deberta+seed-1", "electra-deberta+no-dropout"]
    run = make_run(tmp_path / "records", "folder", models=names, tasks=TASKS)
    make_run(run, "folder", models=["bag-of-words", "majority"], tasks=TASKS, seeds=[0])
    frame = view.load_records(run)
    profile = config.load_profile(
        "mini", profile="beyond", data="data", models=names, tasks=TASKS, seeds=[0, 1]
    )
    unseen = {key: {} for key in names[:2]} | {names[2]: {"effective_rank": 3.5}}
    found = recipes.measure(frame, profile, unseen)
    assert [one["name"] for one in found["models"]] == names
    mine = frame[(frame["model"] == names[2]) & (frame["task"] == "rte")]
    assert found["models"][2]["scores"]["rte"] == list(mine.sort_values("seed")["score"])
    assert found["models"][2]["base"] == "electra-deberta"
    assert [one["effective_rank"] for one in found["models"]] == [None, None, 3.5]
    assert found["train_rows"]["rte"] == mine["rows"].iloc[0]["train"]
    floor = frame[(frame["model"] == "bag-of-words") & (frame["task"] == "rte")]["score"].tolist()
    assert floor == [found["floors"]["bag-of-words"]["rte"]]
    files.write_json(tmp_path / "beyond.json", found)
    assert files.read_json(tmp_path / "beyond.json") == found

    plain = profile.model_copy(update={"models": ["bert"]})
    with pytest.raises(UserError, match="models has none with a change: no-dropout"):
        recipes.measure(frame, plain, unseen)
    alone = profile.model_copy(update={"models": ["bert", "bert+no-dropout+seed-1"]})
    with pytest.raises(UserError, match=r"has bert\+no-dropout\+seed-1, but not bert\+seed-1"):
        recipes.measure(frame, alone, unseen)
