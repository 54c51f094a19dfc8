"""The recipe study: what a variant changes in pre-training, and what its table makes of noise."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from makers import make_run, small_profile
from safetensors.numpy import load_file
from scipy import stats

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.model import registry
from helpers.pages import recipes, view
from helpers.train import finetune, loop, objectives, pretrain

TASKS = ["cola", "rte"]


@pytest.fixture
def study(small_run, tmp_path):
    """A profile of its own over the data and tokens of the small run."""
    profile = small_profile(tmp_path)
    profile.folder.mkdir()
    for name in ("data", "tokenizer"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    return profile


def train(profile, model, **changes):
    values = profile.stage(config.Pretrain, model=model) | changes
    manifest = pretrain.run(config.Pretrain(**values))
    folder = profile.folder / "models" / model
    return manifest, load_file(folder / "encoder" / "model.safetensors"), folder


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_recipe_changes_what_it_says_and_reads_as_many_tokens(study):
    plain, weights, folder = train(study, "electra-deberta")
    base = pd.read_csv(folder / "log.csv")
    recipe = plain["specification"]["model"]["recipe"]
    assert (recipe["epsilon"], recipe["bias_correction"], recipe["weight_decay"]) == (
        1e-8,
        True,
        0.1,
    )
    large, _, folder = train(study, "large-batch")
    log = pd.read_csv(folder / "log.csv")
    assert large["pretrain"]["steps"] == plain["pretrain"]["steps"] / 4
    assert large["pretrain"]["tokens"] == pytest.approx(plain["pretrain"]["tokens"], rel=0.3)
    # Equal but for the decay, which is coarser in a quarter of the steps.
    assert log["rate"].max() == pytest.approx(2 * base["rate"].max(), rel=0.1)
    _, _, folder = train(study, "constant-rate")
    log = pd.read_csv(folder / "log.csv")
    assert log["rate"].iloc[-1] == study.pretrain_learning_rate > base["rate"].iloc[-1]
    assert not same(weights, train(study, "another-seed")[1])


def test_a_recipe_is_the_parameter_it_stands_for(study, monkeypatch):
    seeded = train(study, "another-seed")[1]
    assert same(seeded, train(study, "electra-deberta", pretrain_seed=1)[1])
    undisturbed = train(study, "no-dropout", pretrain_dropout=0.5)[1]
    assert same(undisturbed, train(study, "electra-deberta", pretrain_dropout=0.0)[1])
    spec = replace(registry.REGISTRY["bert"], recipe=registry.Recipe(rate=1000.0))
    monkeypatch.setitem(registry.REGISTRY, "hot", spec)
    with pytest.raises(UserError, match=r"recipe of hot: pretrain_learning_rate = 1\.?5?"):
        train(study, "hot")


def test_replaced_token_detection_may_have_its_own_rate(study):
    own = {"rtd_learning_rate": 3e-4}
    named, _, folder = train(study, "electra", pretrain_learning_rate=3e-4)
    peak = pd.read_csv(folder / "log.csv")["rate"].max()
    shutil.rmtree(folder)
    electra, _, _ = train(study, "electra", **own)
    assert pd.read_csv(folder / "log.csv")["rate"].max() == peak > 0.8 * 3e-4
    # Made anew, the same bytes: not another specification, nor other files.
    assert (electra["spec"], electra["files"]) == (named["spec"], named["files"])
    high = train(study, "high-rate", **own)[2]
    assert pd.read_csv(high / "log.csv")["rate"].max() == pytest.approx(4 * peak)
    bert = train(study, "bert")[0]
    assert train(study, "bert", **own)[0]["spec"] == bert["spec"]
    with pytest.raises(UserError, match=r"rtd_learning_rate = 0\.9: electra diverges"):
        train(study, "electra", rtd_learning_rate=0.9, pretrain_warmup=0.0)


def test_the_rate_may_end_above_zero():
    assert loop.schedule(12, 4, 12, end=0.25) == 0.25
    assert loop.schedule(8, 4, 12, end=0.25) == pytest.approx(0.625)
    assert loop.schedule(1, 4, 12, end=0.25) == loop.schedule(1, 4, 12)


def test_every_variant_names_a_base_of_its_size():
    for name, variant in registry.VARIANTS.items():
        assert variant.base in registry.REGISTRY
        assert name not in registry.REGISTRY
        base = registry.REGISTRY[variant.base]
        assert variant.spec != base
        sizes = []
        for spec in (variant.spec, base):
            task = objectives.build(spec, registry.get_size("tiny"), 200, 64)
            sizes.append(registry.count(registry.encoder(task.model)))
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_pre_ln_encoder_is_trained_to_its_end(study):
    train(study, "pre-ln")
    values = study.stage(config.Finetune, model="pre-ln", tasks=["cola"], seeds=[0])
    (record,) = finetune.run(config.Finetune(**values))
    assert record["model"] == "pre-ln"
    encoder = study.folder / "models" / "pre-ln" / "encoder" / "config.json"
    assert files.read_json(encoder)["model_type"] == "roberta-prelayernorm"


def make_study(scores):
    """A study of one task from a name's score by seed; the names are those of the variants."""
    found = []
    for name, values in scores.items():
        variant = registry.VARIANTS.get(name)
        found.append(
            {
                "name": name,
                "base": variant.base if variant else "",
                "change": variant.change if variant else "",
                "replicate": bool(variant and variant.replicate),
                **{"steps": 10, "tokens": 1000, "epochs": 0.1, "seconds": 1.0, "rank": None},
                "flops": 0.5e9 if name == "quarter-generator" else 1e9,
                "scores": {"cola": values},
            }
        )
    return {"models": found}


def test_a_difference_has_the_error_of_a_regression_on_the_change():
    scores = {"electra-deberta": [40.0, 42.0], "another-seed": [43.0, 43.0]}
    scores |= {"third-seed": [41.5, 41.5], "quarter-generator": [47.0, 46.0]}
    found = recipes.effects(make_study(scores)).set_index("name")
    assert list(found.index) == ["electra-deberta", "quarter-generator"]
    line = stats.linregress([0, 0, 0, 1], [41.0, 43.0, 41.5, 46.5])
    row = found.loc["quarter-generator"]
    assert row["difference"] == pytest.approx(line.slope)
    assert row["error"] == pytest.approx(line.stderr)
    half = stats.t.ppf(0.975, 2) * line.stderr
    assert (row["low"], row["high"]) == pytest.approx((line.slope - half, line.slope + half))
    assert row["flops"] == 0.5
    assert found.loc["electra-deberta", "runs"] == 3


def test_without_repetition_a_difference_has_no_error():
    row = recipes.effects(make_study({"electra-deberta": [40.0], "no-dropout": [42.0]})).iloc[1]
    assert row["difference"] == pytest.approx(2)
    assert row[["error", "low", "high"]].isna().all()
    scores = {"electra-deberta": [40.0], "another-seed": [41.0], "roberta": [41.0]}
    found = recipes.effects(make_study(scores | {"pre-ln": [41.2]})).set_index("name")
    assert found.loc["electra-deberta", "runs"] == 2
    assert found.loc["roberta", "runs"] == 1
    # A base without replicates has the noise of the others.
    assert found.loc["pre-ln", "error"] == pytest.approx(np.std([40, 41], ddof=1) * np.sqrt(2))


@pytest.mark.slow
def test_intervals_of_changes_that_change_nothing_hold_zero():
    rng, outside = np.random.default_rng(0), 0
    names = ["electra-deberta", "another-seed", "third-seed", "no-dropout"]
    for _ in range(2000):
        study = make_study({name: [rng.normal(45, 1)] for name in names})
        row = recipes.effects(study).iloc[1]
        outside += not row["low"] <= 0 <= row["high"]
    assert outside / 2000 == pytest.approx(0.05, abs=0.01)


def test_a_study_is_measured_from_records_of_every_seed(tmp_path):
    names = ["electra-deberta", "another-seed", "no-dropout"]
    run = make_run(tmp_path / "records", "folder", models=names, tasks=TASKS)
    frame = view.load_records(run)
    profile = config.load_profile(
        "mini", profile="beyond", data="data", models=names, tasks=TASKS, seeds=[0, 1]
    )
    found = recipes.measure(frame, profile, {"no-dropout": 3.5})
    assert [one["name"] for one in found["models"]] == names
    mine = frame[(frame["model"] == "no-dropout") & (frame["task"] == "rte")]
    assert found["models"][2]["scores"]["rte"] == list(mine.sort_values("seed")["score"])
    assert found["models"][2]["base"] == "electra-deberta"
    assert [one["rank"] for one in found["models"]] == [None, None, 3.5]
    assert found["train_rows"]["rte"] == mine["rows"].iloc[0]["train"]
    files.write_json(tmp_path / "beyond.json", found)
    assert files.read_json(tmp_path / "beyond.json") == found

    wider = profile.model_copy(update={"seeds": [0, 1, 2]})
    with pytest.raises(UserError, match="electra-deberta has no record of cola, seed 2"):
        recipes.measure(frame, wider)
    plain = profile.model_copy(update={"models": ["bert"]})
    with pytest.raises(UserError, match="models has no variant of a recipe: another-seed"):
        recipes.measure(frame, plain)
