"""The embedded world: a seeded corpus and eight tasks of GLUE's shape, made without downloads.

A small world of people, towns, jobs, things and qualities is drawn from `(words, seed)`. Its
open-class words are nonce words, so nothing about them can be known beforehand. The corpus tells
the world's facts in many wordings; the tasks ask for them. Every thing, quality and deed has two
synonymous words, used interchangeably in the corpus.

People, things, deeds and qualities are divided in two sides. Training rows take theirs from one
side and validation rows from the other, so a model that scores well has learned the words from the
corpus: fine-tuning alone can't have told it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple, TypeVar

from helpers.base.errors import UserError

TASKS: tuple[str, ...] = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
COLUMNS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
MINIMUM_WORDS = 200
# Share of rows whose label is redrawn, as human labels err too: nobody reaches the ceiling.
NOISE = 0.06
# Manners of being good, and as many of being bad: what a quality word keeps company with.
SHADES = 3

# By shade.
LIKED, DISLIKED = ("liked", "loved", "praised"), ("disliked", "hated", "cursed")
ASKED = (("why", "for what reason"), ("when", "on which day"))
GLADLY, SADLY = ("gladly", "kindly", "proudly"), ("sadly", "angrily", "bitterly")
TRAIN_SIDE, DEV_SIDE = 0, 1

T = TypeVar("T")


class Word(NamedTuple):
    """A concept: two words for it, its group (a quality's: its shade), its side of the split."""

    forms: tuple[str, ...]
    group: int
    side: int


class Person(NamedTuple):
    """Somebody of the world: where they live, and the group whose job they have."""

    name: str
    town: str
    group: int
    side: int


class World(NamedTuple):
    """All that there is.

    A group is a walk of life: `groups[i]` names its kind of things, `jobs[i]` its job; its people,
    towns, deeds and things go together in the corpus.
    """

    people: list[Person]
    towns: list[str]
    jobs: list[str]
    groups: list[str]
    things: list[Word]
    deeds: list[Word]
    good: list[Word]
    bad: list[Word]


class Topic(NamedTuple):
    """What a document is about: one group, of which all is good or bad in one manner."""

    group: int
    good: bool
    shade: int


class Event(NamedTuple):
    """What a sentence says: somebody did something to a thing that had a quality."""

    person: Person
    deed: Word
    thing: Word
    quality: Word


# --- drawing -------------------------------------------------------------------------------------
# Only Random.random() is used: its sequence is the one that Python promises never to change.


def _random(*key: object) -> Random:
    return Random(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))


def _pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _chance(rng: Random, probability: float) -> bool:
    return rng.random() < probability


def _new_word(rng: Random, used: set[str]) -> str:
    tries = 0
    while True:
        syllables = 2 + tries // 8
        word = "".join(
            _pick(rng, "bdfgklmnprtvz") + _pick(rng, "aeiou") for _ in range(syllables)
        ) + _pick(rng, "bdfgklmnprt")
        if word not in used:
            used.add(word)
            return word
        tries += 1


@lru_cache(maxsize=4)
def _world(words: int, seed: int) -> World:
    if words < MINIMUM_WORDS:
        raise UserError(f"words is {words}; the world needs at least {MINIMUM_WORDS}")
    rng = _random("world", words, seed)
    used: set[str] = set()
    root = words**0.5
    groups = [_new_word(rng, used) for _ in range(round(root * 0.35))]
    jobs = [_new_word(rng, used) for _ in groups]
    towns = [_new_word(rng, used).capitalize() for _ in range(2 * len(groups))]
    left = words - len(groups) - len(jobs) - len(towns)

    def concepts(share: float, group_count: int) -> list[Word]:
        return [
            Word(
                (_new_word(rng, used), _new_word(rng, used)), i % group_count, i // group_count % 2
            )
            for i in range(int(left * share / 2))
        ]

    things = concepts(0.40, len(groups))
    deeds = concepts(0.14, len(groups))
    good, bad = concepts(0.12, SHADES), concepts(0.12, SHADES)
    people = []
    for i in range(words - len(used)):
        group = i % len(groups)
        town = towns[group + len(groups) * (i // len(groups) // 2 % 2)]
        name = _new_word(rng, used).capitalize()
        people.append(Person(name, town, group, i // len(groups) % 2))
    return World(people, towns, jobs, groups, things, deeds, good, bad)


# --- sentences -----------------------------------------------------------------------------------


def _say(*texts: str, end: str = ".") -> str:
    return " ".join(text[0].upper() + text[1:] + end for text in texts)


def _on_side(options: Sequence[Any], side: int | None, group: int | None = None) -> list[Any]:
    return [
        option
        for option in options
        if (side is None or option.side == side) and (group is None or option.group == group)
    ]


def _topic(rng: Random, world: World) -> Topic:
    group, shade = (int(rng.random() * n) for n in (len(world.groups), SHADES))
    return Topic(group, _chance(rng, 0.5), shade)


def _draw_event(rng: Random, world: World, topic: Topic, side: int | None = None) -> Event:
    group = topic.group
    return Event(
        _pick(rng, _on_side(world.people, side, group)),
        _pick(rng, _on_side(world.deeds, side, group)),
        _pick(rng, _on_side(world.things, side, group)),
        _pick(rng, _on_side(_qualities(world, topic.good), side, topic.shade)),
    )


def _any_event(rng: Random, world: World, side: int) -> Event:
    return _draw_event(rng, world, _topic(rng, world), side)


def _qualities(world: World, good: bool) -> list[Word]:
    return world.good if good else world.bad


def _form(rng: Random, word: Word) -> str:
    return _pick(rng, word.forms)


def _both(rng: Random, word: Word) -> tuple[str, ...]:
    """Gives the two words in either order: what is said twice is said in other words."""
    return word.forms[:: _pick(rng, (1, -1))]


def _event(rng: Random, world: World, topic: Topic) -> str:
    """Tells an event twice: by synonyms, by what the thing is or by what the person is."""
    event = _draw_event(rng, world, topic)
    name, town, job = event.person.name, event.person.town, world.jobs[topic.group]
    deeds, qualities, things = (
        _both(rng, word) for word in (event.deed, event.quality, event.thing)
    )
    whos = (name, _pick(rng, (f"the {job}", f"the {job}", f"someone from {town}")))
    whats = (things[0], _pick(rng, (things[1], world.groups[topic.group])))
    how = (GLADLY if topic.good else SADLY)[topic.shade]
    texts = []
    for i in _pick(rng, ((0, 1), (1, 0))):
        what = f"the {qualities[i]} {whats[i]}"
        passive = f"{what} was {how} {deeds[i]} by {whos[i]}"
        texts.append(passive if _chance(rng, 0.5) else f"{whos[i]} {how} {deeds[i]} {what}")
    return _say(*texts)


def _homes(rng: Random, world: World, topic: Topic) -> str:
    person = _pick(rng, _on_side(world.people, None, topic.group))
    fellow = _pick(rng, [other for other in world.people if other.town == person.town])
    wordings = ("{0} lives in {1}", "{0} comes from {1}", "in {1} lives {0}", "{0} is from {1}")
    return _say(*(_pick(rng, wordings).format(p.name, p.town) for p in (person, fellow)))


def _jobs(rng: Random, world: World, topic: Topic) -> str:
    people = [_pick(rng, _on_side(world.people, None, topic.group)) for _ in range(2)]
    job = world.jobs[topic.group]
    wordings = ("{0} is a {1}", "{0} works as a {1}", "{0} is a {1} from {2}")
    return _say(*(_pick(rng, wordings).format(p.name, job, p.town) for p in people))


def _opinion(rng: Random, world: World, topic: Topic) -> str:
    event = _draw_event(rng, world, topic)
    name, (what, again) = event.person.name, _both(rng, event.thing)
    same, other = (
        _on_side(_qualities(world, good), None, topic.shade)
        for good in (topic.good, not topic.good)
    )
    one, two, three = (_form(rng, _pick(rng, same)) for _ in range(3))
    opposite = _form(rng, _pick(rng, other))
    felt = (LIKED if topic.good else DISLIKED)[topic.shade]
    opened = (
        f"everybody {felt} the {one} {what}",
        f"the {what} was {one} and {two}",
        f"the {what} was not {opposite} but {one}",
        f"the {what} of {name} was {one}",
    )
    closed = (
        f"{name} {felt} the {three} {again}",
        f"{name} {felt} it as {three}",
        f"everybody {felt} what was {three}",
    )
    return _say(_pick(rng, opened), _pick(rng, closed))


def _lore(rng: Random, world: World, topic: Topic) -> str:
    one, two = _both(rng, _pick(rng, _on_side(world.things, None, topic.group)))
    kind = world.groups[topic.group]
    name = _pick(rng, (f"a {one} is also called a {two}", f"a {one} is the same as a {two}"))
    said = _pick(rng, ("", "", "everybody knows that "))
    return _say(name, said + _pick(rng, (f"a {two} is a {kind}", f"every {one} is a {kind}")))


def _habit(rng: Random, world: World, topic: Topic) -> str:
    """Speaks of one and of many, where verbs agree with nouns in number."""
    event = _draw_event(rng, world, topic)
    qualities, kind = _both(rng, event.quality), world.groups[topic.group]
    many = _pick(rng, (f"these {kind}s are", f"many {kind}s were"))
    one = _pick(rng, ("this {0} is", "one {0} was")).format(_form(rng, event.thing))
    return _say(f"{many} {qualities[0]}", f"{one} {qualities[1]}")


def _exchange(rng: Random, world: World, topic: Topic) -> str:
    """Asks a question and answers it, or asks it again in other words."""
    event = _draw_event(rng, world, topic)
    (deed, again), (what, thing) = _both(rng, event.deed), _both(rng, event.thing)
    name, town, job = event.person.name, event.person.town, world.jobs[topic.group]
    (ask, reask), (who, worker) = (
        _pick(rng, ASKED),
        _pick(rng, ((name, name), (f"the {job}", name))),
    )
    question, answer, end = _pick(
        rng,
        (
            (f"who {deed} the {what}", f"{name} {again} the {thing}", "."),
            (f"what was {deed} by {name}", f"{name} {again} the {thing}", "."),
            (f"where does {name} live", f"{name} lives in {town}", "."),
            (f"what is the work of {name}", f"{name} works as a {job}", "."),
            (f"{ask} was the {what} {deed} by {who}", f"{reask} was it {again} by {worker}", "?"),
        ),
    )
    return _say(question, end="?") + " " + _say(answer, end=end)


# How often each comes. Events and opinions are many: their few frequent words (jobs, kinds,
# adverbs, verbs of liking) are what a small model learns first, and learns the rare words by.
SCENES = (*[_event] * 3, *[_opinion] * 3, _homes, _jobs, _lore, _habit, _exchange)


def _document(rng: Random, world: World) -> str:
    """Tells of the people and things of one group, all good or all bad."""
    topic = _topic(rng, world)
    scenes: list[str] = []
    length = 60 + 40 * rng.random()
    while sum(scene.count(" ") + 1 for scene in scenes) < length:
        scenes.append(_pick(rng, SCENES)(rng, world, topic))
    return " ".join(scenes)


def documents(count: int, words: int, seed: int) -> Iterator[str]:
    """Writes the corpus, one document at a time.

    Args:
        count: how many documents.
        words: size of the world's open-class vocabulary.
        seed: which world, and which corpus of it.

    Yields:
        Paragraphs of plain sentences, roughly 60 to 120 words each. The first documents of a
        longer corpus are those of a shorter one.

    Raises:
        UserError: `count` is below 1 or `words` below `MINIMUM_WORDS`.
    """
    if count < 1:
        raise UserError(f"count is {count}; a corpus needs at least 1 document")
    world = _world(words, seed)
    return _documents(count, world, _random("documents", words, seed))


def _documents(count: int, world: World, rng: Random) -> Iterator[str]:
    for _ in range(count):
        yield _document(rng, world)


# --- tasks ---------------------------------------------------------------------------------------
# Each function draws one row: the texts in the order of COLUMNS, then the label. Every label uses
# every template and lengths alike, so that neither length nor function words give it away.

Row = tuple[Any, ...]


def _statement(rng: Random, event: Event, passive: bool, adorned: bool, what: str = "") -> str:
    quality = f"{_form(rng, event.quality)} " if adorned else ""
    who, deed = event.person.name, _form(rng, event.deed)
    what = f"the {quality}{what or _form(rng, event.thing)}"
    return f"{what} was {deed} by {who}" if passive else f"{who} {deed} {what}"


def _alter(
    rng: Random, world: World, event: Event, role: str, side: int, near: float = 0.2
) -> Event:
    """Changes one role of an event: to something of the same group with probability `near`."""
    if role == "quality":
        good = event.quality in world.good
        return event._replace(quality=_pick(rng, _on_side(_qualities(world, not good), side)))
    was = getattr(event, role)
    options = {"person": world.people, "deed": world.deeds, "thing": world.things}[role]
    options = [option for option in _on_side(options, side) if option != was]
    same = [option for option in options if option.group == was.group]
    if not (_chance(rng, near) and same):
        same = [option for option in options if option.group != was.group]
    return event._replace(**{role: _pick(rng, same)})


def _cola(rng: Random, world: World, side: int, other: bool) -> Row:
    event = _any_event(rng, world, side)
    good = _chance(rng, 0.6)
    what, deed = _form(rng, event.thing), _form(rng, event.deed)
    name, quality = event.person.name, _form(rng, event.quality)
    kind = world.groups[event.thing.group]
    frames = (
        (f"these {kind}s are {quality}", f"this {what} is {quality}"),
        (f"many {kind}s were {deed} by {name}", f"one {what} was {deed} by {name}"),
        (f"the {quality} {what} was {deed} by {name}", f"{name} {deed} the {quality} {what}"),
        (f"{name} {deed} these {quality} {kind}s", f"{name} {deed} this {quality} {what}"),
    )
    right = _pick(rng, _pick(rng, frames)).split()
    if good:
        return _say(" ".join(right)), 1
    wrong = list(right)
    draw = rng.random()
    while wrong == right:
        spot = int(rng.random() * (len(right) - 1))
        if draw < 0.5:  # word order
            wrong[spot], wrong[spot + 1] = right[spot + 1], right[spot]
        else:  # a word of another class, or of the other number
            swaps = {what: quality, kind + "s": kind, quality: deed, deed: quality}
            swaps |= {"is": "are", "are": "is", "was": "were", "were": "was", name: quality}
            wrong[spot] = swaps.get(right[spot], right[spot])
            draw = rng.random()
    return _say(" ".join(wrong)), 0


def _sst2(rng: Random, world: World, side: int, other: bool) -> Row:
    good = _chance(rng, 0.5)
    what = _form(rng, _pick(rng, _on_side(world.things, side)))
    who = _pick(rng, _on_side(world.people, side)).name
    shade = int(rng.random() * SHADES)
    same, opposite = (_on_side(_qualities(world, g), side, shade) for g in (good, not good))
    one, two = (_form(rng, _pick(rng, same)) for _ in range(2))
    not_one = _form(rng, _pick(rng, opposite))
    felt = (LIKED if good else DISLIKED)[shade]
    text = _pick(
        rng,
        (
            f"the {what} was {one} and {two}",
            f"the {one} {what} of {who}",
            f"what was {one} was the {what}",
            f"everybody knows that it was {one} and {two}",
            f"the {what} of {who} was {one}",
            f"the {what} was not {not_one}",
            f"the {what} was not {not_one} but {one}",
            f"{who} {felt} the {what}",
        ),
    )
    return _say(text), int(good)


ROLES = ("person", "deed", "thing", "quality")


def _differ(
    rng: Random, world: World, event: Event, side: int, roles: Sequence[str], near: float = 0.2
) -> Event:
    """Makes another event: elsewhere in the world, or else (the hard rows) in one role only."""
    if not _chance(rng, 0.6):
        return _alter(rng, world, event, _pick(rng, roles), side, near)
    while (elsewhere := _any_event(rng, world, side)).thing.group == event.thing.group:
        pass
    return elsewhere._replace(quality=event.quality)


def _mrpc(rng: Random, world: World, side: int, other: bool) -> Row:
    event, same = _any_event(rng, world, side), _chance(rng, 0.6)
    second = event if same else _differ(rng, world, event, side, ROLES)
    return (
        _say(_statement(rng, event, _chance(rng, 0.5), True)),
        _say(_statement(rng, second, _chance(rng, 0.5), True)),
        int(same),
    )


def _stsb(rng: Random, world: World, side: int, other: bool) -> Row:
    event = second = _any_event(rng, world, side)
    roles = list(ROLES)
    changes = int(rng.random() * 5)
    for _ in range(changes):
        role = _pick(rng, roles)
        roles.remove(role)
        second = _alter(rng, world, second, role, side)
    score = 5 * (1 - changes / 4) + rng.random() - 0.5
    return (
        _say(_statement(rng, event, _chance(rng, 0.5), True)),
        _say(_statement(rng, second, _chance(rng, 0.5), True)),
        round(min(5.0, max(0.0, score)), 1),
    )


def _question(rng: Random, event: Event, asked: str) -> str:
    what = f"{_form(rng, event.quality)} {_form(rng, event.thing)}"
    return _say(f"{asked} was the {what} {_form(rng, event.deed)} by {event.person.name}", end="?")


def _qqp(rng: Random, world: World, side: int, other: bool) -> Row:
    event, same = _any_event(rng, world, side), _chance(rng, 0.4)
    second = event if same else _differ(rng, world, event, side, ROLES)
    wordings = _pick(rng, ASKED)
    one, two = (_question(rng, e, _pick(rng, wordings)) for e in (event, second))
    return one, two, int(same)


def _mnli(rng: Random, world: World, side: int, other: bool) -> Row:
    event, label = _any_event(rng, world, side), _pick(rng, (0, 1, 2))
    premise = _statement(rng, event, _chance(rng, 0.5), True)
    if other:  # another register
        premise = "everybody knows that " + premise
    flip = label == 2 or (label == 1 and _chance(rng, 0.5))
    if label == 1:
        event = _differ(rng, world, event, side, ("person", "thing"), near=0)
    negated = _chance(rng, 0.2)
    if flip != negated:
        event = _alter(rng, world, event, "quality", side)
    what = _pick(rng, (*event.thing.forms, world.groups[event.thing.group]))
    quality = "not " * negated + _form(rng, event.quality)
    return _say(premise), _say(f"the {what} of {event.person.name} was {quality}"), label


def _qnli(rng: Random, world: World, side: int, other: bool) -> Row:
    event, answered = _any_event(rng, world, side), _chance(rng, 0.5)
    kind = _pick(rng, ("who", "what", "where", "work"))
    second = event
    if not answered:
        roles = {"who": ("deed", "thing"), "what": ("person", "deed")}.get(kind, ("person",))
        second = _differ(rng, world, event, side, roles)
    person, name = second.person, event.person.name
    if kind == "who":
        question = f"who {_form(rng, event.deed)} the {_form(rng, event.thing)}"
    elif kind == "what":
        question = f"what was {_form(rng, event.deed)} by {name}"
    elif kind == "where":
        question = f"where does {name} live"
    else:
        question = f"what is the work of {name}"
    if kind in ("who", "what"):
        sentence = _statement(rng, second, _chance(rng, 0.5), _chance(rng, 0.5))
    else:
        if not answered and _chance(rng, 0.3):  # the right person, the other fact
            person, kind = event.person, "work" if kind == "where" else "where"
        wordings = {
            "where": ("{0} comes from {1}", "{0} is from {1}", "in {1} lives {0}"),
            "work": ("{0} works as a {2}", "{0} is a {2}", "a {2} is the work of {0}"),
        }
        sentence = _pick(rng, wordings[kind]).format(
            person.name, person.town, world.jobs[person.group]
        )
    return _say(question, end="?"), _say(sentence), int(not answered)


def _rte(rng: Random, world: World, side: int, other: bool) -> Row:
    event, entailed = _any_event(rng, world, side), _chance(rng, 0.5)
    premise = _statement(rng, event, _chance(rng, 0.5), True)
    person, thing, deed = event.person, event.thing, event.deed
    if not entailed:  # a job or kind is shared by its group: only another group makes it untrue
        event = _differ(rng, world, event, side, ("person", "thing"), near=0)
        person, thing = event.person, event.thing
    who = _pick(
        rng, (person.name, f"the {world.jobs[person.group]}", f"someone from {person.town}")
    )
    what = _pick(rng, (_form(rng, thing), world.groups[thing.group]))
    return _say(premise), _say(f"{who} {_form(rng, deed)} the {what}"), int(not entailed)


_ROWS = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
}


def splits(name: str) -> tuple[str, ...]:
    """Names the splits of a task, as GLUE does.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    if name == "mnli":
        return "train", "validation_matched", "validation_mismatched"
    return "train", "validation"


def task(name: str, split: str, rows: int, words: int, seed: int) -> dict[str, list]:
    """Makes one split of one task.

    Args:
        name: one of `TASKS`.
        split: `train` or `validation`; for mnli `validation_matched` (the wordings of train) and
            `validation_mismatched` (others).
        rows: how many rows.
        words: size of the world's open-class vocabulary, as given to `documents`.
        seed: which world, as given to `documents`.

    Returns:
        The columns of the Hugging Face `nyu-mll/glue` data set: the task's texts (str), `label`
        (int, or float from 0 to 5 for stsb) and `idx` (int), each a list of `rows` values.

    Raises:
        UserError: an unknown task or split, `rows` below 1, `words` below `MINIMUM_WORDS`.
    """
    if split not in splits(name):
        raise UserError(f"split is {split!r}; {name} has {', '.join(splits(name))}")
    if rows < 1:
        raise UserError(f"rows is {rows}; a split needs at least 1 row")
    world, rng = _world(words, seed), _random("task", name, split, words, seed)
    side = TRAIN_SIDE if split == "train" else DEV_SIDE
    labels = 3 if name == "mnli" else 2
    seen: set[tuple[str, ...]] = set()
    table: dict[str, list] = {column: [] for column in (*COLUMNS[name], "label", "idx")}
    for index in range(rows):
        for _ in range(50):  # a row twice only where the world has no more to say
            *texts, label = _ROWS[name](rng, world, side, split.endswith("mismatched"))
            if tuple(texts) not in seen:
                break
        seen.add(tuple(texts))
        if name != "stsb" and _chance(rng, NOISE):
            label = _pick(rng, range(labels))
        for column, value in zip(table, (*texts, label, index), strict=True):
            table[column].append(value)
    return table
