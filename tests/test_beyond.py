"""The recipe study: what a change changes in pre-training, and what its table makes of noise."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.model import registry
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
