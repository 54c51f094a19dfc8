"""The embedded world: repeatable, of GLUE's shape, balanced, and without a way around its words."""

import itertools
import os
import re
from collections import Counter

import numpy as np
import pytest
from makers import command
from sklearn.linear_model import LogisticRegression

from helpers.data import glue, synthetic

WORDS, SEED = 400, 3
SPLITS = [(name, split) for name, task in glue.TASKS.items() for split in task.splits]


def _table(name, split, rows=600):
    """The texts of each row, and the labels."""
    table = synthetic.rows(name, split, rows, WORDS, SEED)
    return [row[:-1] for row in table], [row[-1] for row in table]


def _words(texts):
    return {word for text in texts for word in re.findall(r"[a-z]+", " ".join(text).lower())}


def _forms(side):
    world = synthetic._world(WORDS, SEED)
    concepts = [*world.things, *world.deeds, *world.qualities[True], *world.qualities[False]]
    forms = {form for word in concepts if word.side == side for form in word.forms}
    return forms | {person.name.lower() for person in world.people if person.side == side}


def test_same_bytes_in_another_process():
    code = (
        "import hashlib; from helpers.data import synthetic as s;"
        f"text = list(s.documents(20, {WORDS}, {SEED}));"
        f"rows = [s.rows(t, 'train', 30, {WORDS}, {SEED}) for t in {[*glue.TASKS]}];"
        "print(hashlib.sha256(repr((text, rows)).encode()).hexdigest())"
    )
    runs = [
        command("-c", code, env=os.environ | {"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_documents_stream_and_a_longer_corpus_begins_like_a_shorter_one():
    endless = synthetic.documents(10**12, WORDS, SEED)
    assert list(itertools.islice(endless, 5)) == list(synthetic.documents(5, WORDS, SEED))
    lengths = [len(text.split()) for text in synthetic.documents(200, WORDS, SEED)]
    assert min(lengths) >= 55
    assert max(lengths) <= 130
    others = [next(synthetic.documents(1, *key)) for key in ((400, 0), (400, 1), (500, 0))]
    assert len(set(others)) == 3


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_schema_and_labels(name, split):
    texts, labels = _table(name, split)
    assert {len(row) for row in texts} == {len(glue.get(name).columns)}
    assert all(text[-1] in ".?" for row in texts for text in row)
    if name == "stsb":
        assert all(isinstance(label, float) and 0 <= label <= 5 for label in labels)
        assert np.std(labels) > 1
        return
    shares = Counter(labels)
    assert set(shares) == set(range(len(glue.get(name).labels)))
    assert max(shares.values()) / 600 < 0.68
    assert min(shares.values()) / 600 > 0.25


@pytest.mark.parametrize("name", glue.TASKS)
def test_validation_asks_for_words_that_training_does_not_show(name):
    train, *others = (_table(name, split)[0] for split in glue.get(name).splits)
    assert not _words(train) & _forms(synthetic.DEV_SIDE)
    assert len(set(train)) == 600
    for other in others:
        assert not _words(other) & _forms(synthetic.TRAIN_SIDE)
        assert not set(train) & set(other)


@pytest.mark.parametrize("name", [name for name in glue.TASKS if name != "stsb"])
def test_length_does_not_give_the_label_away(name):
    def features(texts):
        return [[len(t.split()) for t in row] + [len(t) for t in row] for row in texts]

    train, held = _table(name, "train", 2000), _table(name, glue.get(name).validation, 2000)
    model = LogisticRegression(max_iter=2000).fit(features(train[0]), train[1])
    majority = max(Counter(held[1]).values()) / 2000
    assert model.score(features(held[0]), held[1]) < majority + 0.05


def test_the_corpus_uses_every_word_of_the_tasks():
    told = _words([(text,) for text in synthetic.documents(2000, WORDS, SEED)])
    for name, split in SPLITS:
        assert _words(_table(name, split)[0]) <= told


def test_the_corpus_tells_the_facts_that_rte_asks():
    world = synthetic._world(WORDS, SEED)
    corpus = " ".join(synthetic.documents(3000, WORDS, SEED)).lower()
    for person in world.people:
        name, town, job = (
            word.lower() for word in (person.name, person.town, world.jobs[person.group])
        )
        assert f"{name} comes from {town}" in corpus
        assert f"{name} is a {job}" in corpus
    for thing in world.things:
        for form in thing.forms:
            said = f" {form} is a {world.groups[thing.group]}."
            assert "a" + said in corpus or "every" + said in corpus
        one, two = thing.forms
        called = "a {} is also called a {}"
        assert called.format(one, two) in corpus or called.format(two, one) in corpus


def test_a_world_has_at_least_200_words():
    with pytest.raises(ValueError, match="words is 10; the world needs at least 200"):
        synthetic.rows("cola", "train", 5, 10, 0)
