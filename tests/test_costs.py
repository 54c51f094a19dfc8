import json
import math
import re

import pytest
from makers import ROOT

from helpers.base import config
from helpers.base.errors import UserError
from helpers.model import registry
from helpers.score import costs

GPUS = ROOT / "results" / "gpus.json"


@pytest.fixture(scope="module")
def gpus():
    return costs.load(GPUS)


@pytest.fixture(scope="module")
def estimates(gpus, published):
    return costs.table(gpus, published)


def test_an_outline_has_the_papers_parameters_and_no_memory(published):
    study = config.load_profile("paper")
    for name, entry in published["table1"]["models"].items():
        task = costs.outline(name, study)
        assert {parameter.device.type for parameter in task.parameters()} == {"meta"}
        stated = entry["parameters_millions"]["value"]
        if stated is not None:
            count = registry.count(registry.encoder(task.model))
            assert count / 1e6 == pytest.approx(stated, abs=0.01)


def test_rates_hours_and_energy_follow_from_flop(estimates, gpus):
    assert len(estimates[~estimates["measured"]]) == 6 * len(gpus)
    for row in estimates.to_dict("records"):
        gpu = gpus[row["gpu"]]
        per_token = costs.flops(row["model"], config.load_profile("paper"))
        used = row["tokens_per_second"] * per_token / 1e12
        assert used == pytest.approx(row["utilisation"] * gpu.peak_tflops)
        read = row["hours"] * 3600 * row["tokens_per_second"]
        length = 126 if row["model"] == "roberta" else 128
        assert read == pytest.approx(1_000_000 * 128 * length)
        assert row["kwh"] == pytest.approx(row["hours"] * gpu.watts / 1000)


def test_flop_are_those_counted_by_hand():
    study = config.load_profile("paper")
    counts = {"bert": 65, "electra": 70}
    # Ours leaves out the end of the last layer where nothing is guessed: BERT's is 256 and 1,024
    # wide, ELECTRA's generator a quarter of that.
    for name, h, f in [("bert", 256, 1024), ("electra", 64, 256)]:
        saved = 0.85 * 3 * 2 * (h * h + 2 * h * f)
        assert round((costs.flops(name, study) + saved) / 1e6) == counts[name]


def test_measured_rows_stand_beside_and_justify_the_assumption(estimates, published):
    rows = estimates[estimates["measured"]]
    assert rows["tokens_per_second"].tolist() == [47_000, 91_000, 95_000]
    assert set(rows["model"]) == {"electra"}
    stated = next(e["method"] for e in published["throughput"] if e["gpu"] == "rtx3090")
    percent = float(re.search(r"([\d.]+) % of peak", stated)[1])
    used = rows.set_index("gpu")["utilisation"]
    assert round(100 * used["rtx3090"], 1) == percent
    middle = math.sqrt(used.min() * used.max())
    assert middle == pytest.approx(costs.UTILISATION, abs=0.001)
    before = estimates.loc[rows.index[0] - 1]
    assert (before["gpu"], before["measured"]) == ("v100", False)


def test_another_profile_has_its_own_tokens(gpus, published):
    small = costs.table(gpus, published, names=["bert"], profile="tiny")
    tiny = config.load_profile("tiny")
    count = tiny.pretrain_steps * tiny.pretrain_batch_size * tiny.max_length
    assert costs.tokens("bert", tiny) == count
    short = tiny.pretrain_steps * tiny.pretrain_batch_size * 2  # RoBERTa's positions begin at 2
    assert costs.tokens("roberta", tiny) == count - short
    assert (small["hours"] * 3600 * small["tokens_per_second"]).to_numpy() == pytest.approx(count)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"utilisation": 0.0}, "utilisation = 0.0: must be above 0"),
        ({"utilisation": 5.0}, "utilisation = 5.0: .*at most 1"),
        ({"names": ["bart"]}, "model = 'bart'"),
        ({"profile": "papers"}, "did you mean paper"),
    ],
)
def test_a_wrong_assumption_is_one_line(gpus, published, given, says):
    with pytest.raises(UserError, match=says):
        costs.table(gpus, published, **given)


def test_a_broken_file_of_gpus_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        costs.load(tmp_path / "gpus.json")
    content = json.loads(GPUS.read_text(encoding="utf-8"))
    content["gpus"]["t4"]["watts"] = -70
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"gpus\.json: gpus\.t4\.watts = -70"):
        costs.load(path)


def test_a_generator_of_the_registry_costs_what_its_width_does():
    for fraction, name in ((0.25, "electra-deberta+quarter-generator"), (1.0, "electra-deberta")):
        study = config.load_profile("paper", generator_fraction=fraction)
        own = costs.flops(name, config.load_profile("paper"))
        assert costs.flops("electra-deberta", study) == pytest.approx(own)


def test_a_model_of_ones_own_is_priced(published, gpus, monkeypatch):
    spec = registry.Spec("bert", "rtd", generator_fraction=0.5)
    monkeypatch.setitem(registry.REGISTRY, "electra-half", spec)
    found = costs.table(gpus, published)
    hours = found[~found["measured"]].groupby("model")["hours"].sum()
    assert hours["electra"] < hours["electra-half"] < hours["electra-deberta"]
