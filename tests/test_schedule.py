"""Hours of the grid on several GPUs: against schedules worked out by hand, and bounds."""

import random

import pytest
from helpers.pages.schedule import Job
from makers import ROOT, table_rows

from helpers.base import config
from helpers.base.errors import UserError
from helpers.pages import schedule
from helpers.score import costs


def job(name, hours, after=""):
    return Job(name, float(hours), after)


# Two chains (3 then 2, 2 then 4) and a job alone.
WORK = [job("a", 3), job("a2", 2, "a"), job("b", 2), job("b2", 4, "b"), job("c", 1)]


@pytest.mark.parametrize(
    ("work", "gpus", "hours"),
    [
        ([], 1, 0),
        ([job("a", 3)], 4, 3),
        (WORK, 1, 12),
        # b 0-2, a 0-3, b2 2-6, a2 3-5, c 5-6
        (WORK, 2, 6),
        # c begins at once; the chain of b ends last
        (WORK, 3, 6),
        (WORK, 100, 6),
        # Three of 2 hours on two GPUs: the third waits.
        ([job(n, 2) for n in "abc"], 2, 4),
        # Longest first: 3 | 2 2, not 2 3 | 2.
        ([job("a", 2), job("b", 2), job("c", 3)], 2, 4),
        # Several jobs after one: 5, then 1 and 3 side by side.
        ([job("p", 5), job("q", 1, "p"), job("r", 3, "p")], 2, 8),
        ([job("p", 5), job("q", 1, "p"), job("r", 3, "p")], 1, 9),
        # Graham's: three long, one longer, two GPUs; the list is not the best, which is 6.
        ([job("a", 3), job("b", 3), job("c", 2), job("d", 2), job("e", 2)], 2, 7),
    ],
)
def test_schedules_worked_out_by_hand(work, gpus, hours):
    assert schedule.makespan(work, gpus) == hours


def test_a_schedule_lies_between_the_bound_and_twice_it():
    chance = random.Random(0)
    for _ in range(200):
        work = [job("0", chance.uniform(0, 9))]
        for number in range(1, chance.randint(1, 20)):
            after = chance.choice(["", *(other.name for other in work)])
            work.append(job(str(number), chance.uniform(0, 9), after))
        chance.shuffle(work)
        gpus = chance.randint(1, 8)
        bound, hours = schedule.floor(work, gpus), schedule.makespan(work, gpus)
        total = sum(one.hours for one in work)
        assert bound <= hours * (1 + 1e-12)
        assert hours <= total / gpus + schedule.floor(work, 10**6) + 1e-9  # Graham's bound
        assert schedule.makespan(work, 1) == pytest.approx(total)
        assert schedule.makespan(work, len(work)) == pytest.approx(schedule.floor(work, 10**6))


def test_the_bound_is_the_work_on_every_gpu_or_the_longest_chain():
    assert schedule.floor(WORK, 1) == 12
    assert schedule.floor(WORK, 2) == 6
    assert schedule.floor(WORK, 40) == 6
    assert schedule.floor([job("a", 1), job("b", 2, "a"), job("c", 4, "b")], 40) == 7


@pytest.mark.parametrize(
    ("work", "gpus", "says"),
    [
        (WORK, 0, "gpus = 0"),
        ([job("a", 1, "z")], 1, "a comes after z, which is no job"),
        ([job("a", 1), job("a", 2)], 1, "the same name"),
    ],
)
def test_an_impossible_schedule_is_one_line(work, gpus, says):
    with pytest.raises(UserError, match=says):
        schedule.makespan(work, gpus)


@pytest.fixture(scope="module")
def gpus():
    return costs.load(ROOT / "results" / "gpus.json")


def test_the_jobs_of_the_paper(gpus):
    study = config.load_profile("paper")
    single = schedule.jobs(study, gpus["v100"], grouped=False)
    grouped = schedule.jobs(study, gpus["v100"], grouped=True)
    assert (len(single), len(grouped)) == (5 * 9, 5 * 2)
    hours = {one.name: one.hours for one in single}
    assert sum(hours.values()) == pytest.approx(sum(one.hours for one in grouped))
    # The hours of a pre-training are those of the page of costs.
    per_token = costs.flops("electra", study)
    rate = costs.UTILISATION * 125e12 / per_token
    assert hours["pretrain electra"] == pytest.approx(1_000_000 * 128 * 128 / rate / 3600)
    # BERT and ELECTRA have the same encoder: fine-tuning takes them as long.
    assert hours["finetune bert rte"] == pytest.approx(hours["finetune electra rte"])
    assert {one.after for one in grouped if one.name.startswith("finetune")} == {
        f"pretrain {name}" for name in study.models if name != "scratch"
    }


def test_the_table_falls_to_the_longest_chain(gpus):
    study = config.load_profile("paper")
    found = schedule.table(study, gpus["v100"])
    assert found["gpus"].tolist() == [1, 2, 3, 4, 5, 8, 16, 40]
    for key in ("grouped", "single"):
        assert found[key].is_monotonic_decreasing
        assert (found[key] >= found["floor"] * (1 - 1e-12)).all()
    single = {one.name: one.hours for one in schedule.jobs(study, gpus["v100"], grouped=False)}
    chain = single["pretrain electra-deberta"] + single["finetune electra-deberta mnli"]
    assert found["single"].iloc[-1] == pytest.approx(chain)
    # Twice the utilisation, half the hours.
    half = schedule.table(study, gpus["v100"], utilisation=2 * costs.UTILISATION)
    assert half["grouped"].to_numpy() == pytest.approx(found["grouped"].to_numpy() / 2)


def test_the_fragment_shows_every_count(gpus):
    text = schedule.cluster(gpus)
    rows = table_rows(text)
    assert [row[0] for row in rows[1:]] == [str(n) for n in schedule.COUNTS]
    assert rows[1][-2:] == ["1.0", "1.0"]
    assert len(table_rows(text, 1)) == 1 + 5
    assert "longest job is the pre-training of electra-deberta" in text
