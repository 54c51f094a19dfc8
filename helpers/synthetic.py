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

from helpers.config import UserError

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

LIKED = ("liked", "loved", "enjoyed", "praised")
DISLIKED = ("hated", "disliked", "regretted", "cursed")
TIMES = ("today", "yesterday", "last week", "last year", "in spring", "in winter")
SHARED_SIDE, TRAIN_SIDE, DEV_SIDE = None, 0, 1

T = TypeVar("T")


class Word(NamedTuple):
    """A concept: one or two words for it, the group it belongs to and its side of the split."""

    forms: tuple[str, ...]
    group: int
    side: int


class Person(NamedTuple):
    """Somebody of the world, and the two facts about them."""

    name: str
    town: str
    job: str
    side: int


class World(NamedTuple):
    """All that there is; `groups[i]` names the kind of thing that `things` of group i are."""

    people: list[Person]
    towns: list[str]
    jobs: list[str]
    groups: list[str]
    things: list[Word]
    deeds: list[Word]
    good: list[Word]
    bad: list[Word]


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


def _pick_other(rng: Random, options: Sequence[T], *used: T) -> T:
    while (choice := _pick(rng, options)) in used:
        pass
    return choice


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
    jobs = [_new_word(rng, used) for _ in range(round(root * 0.4))]
    towns = [_new_word(rng, used).capitalize() for _ in range(round(root * 0.5))]
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
    good, bad = concepts(0.12, 1), concepts(0.12, 1)
    people = [
        Person(_new_word(rng, used).capitalize(), _pick(rng, towns), _pick(rng, jobs), i % 2)
        for i in range(words - len(used))
    ]
    return World(people, towns, jobs, groups, things, deeds, good, bad)


# --- sentences -----------------------------------------------------------------------------------


def _say(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def _on_side(options: Sequence[Any], side: int | None, group: int | None = None) -> list[Any]:
    return [
        o
        for o in options
        if (side is None or o.side == side) and (group is None or o.group == group)
    ]


def _draw_event(rng: Random, world: World, side: int | None = None) -> Event:
    thing = _pick(rng, _on_side(world.things, side))
    return Event(
        _pick(rng, _on_side(world.people, side)),
        _pick(rng, _on_side(world.deeds, side, thing.group)),
        thing,
        _pick(rng, _on_side(world.good + world.bad, side)),
    )


def _form(rng: Random, word: Word) -> str:
    return _pick(rng, word.forms)


def _who(rng: Random, person: Person) -> str:
    """Names a person: by name, or by job or town, which tells the facts in passing."""
    draw = rng.random()
    if draw < 0.5:
        return person.name
    if draw < 0.75:
        return f"the {person.job} {person.name}"
    return f"{person.name} from {person.town}"


def _what(rng: Random, world: World, thing: Word) -> str:
    return world.groups[thing.group] if _chance(rng, 0.25) else _form(rng, thing)


def _active(rng: Random, event: Event, who: str, what: str) -> str:
    quality = f"{_form(rng, event.quality)} " if _chance(rng, 0.5) else ""
    deed = _form(rng, event.deed) + "ed"
    if _chance(rng, 0.7):
        return f"{who} {deed} the {quality}{what}"
    return f"the {quality}{what} was {deed} by {who}"


def _facts(rng: Random, person: Person) -> str:
    name, town, job = person.name, person.town, person.job
    return _pick(
        rng,
        (
            f"{name} lives in {town}",
            f"{name} comes from {town}",
            f"{name} has a house in {town}",
            f"the home of {name} is {town}",
            f"{name} is a {job}",
            f"{name} works as a {job}",
            f"the work of {name} is that of a {job}",
            f"{name} is a {job} from {town}",
            f"in {town} lives {name} the {job}",
        ),
    )


def _opinion(rng: Random, world: World, thing: Word, good: bool, who: str) -> str:
    same, other = (world.good, world.bad) if good else (world.bad, world.good)
    what, first = _what(rng, world, thing), _form(rng, _pick(rng, same))
    second, opposite = _form(rng, _pick(rng, same)), _form(rng, _pick(rng, other))
    felt = _pick(rng, LIKED if good else DISLIKED)
    return _pick(
        rng,
        (
            f"the {what} was {first} and {second}",
            f"{who} {felt} the {first} {what}",
            f"{who} {felt} the {what} because it was {first}",
            f"the {what} was not {opposite} but {first}",
            f"{who} {felt} it and called it {first}",
            f"everybody {felt} such a {first} and {second} {what}",
        ),
    )


def _lore(rng: Random, world: World, thing: Word) -> str:
    one, two = thing.forms[:: _pick(rng, (1, -1))]
    group, what = world.groups[thing.group], _form(rng, thing)
    return _pick(
        rng,
        (
            f"a {one} is also called a {two}",
            f"a {one} is the same as a {two}",
            f"a {what} is a kind of {group}",
            f"every {what} is a {group}",
            f"{what}s are {group}s",
            f"some {group}s are {what}s",
        ),
    )


def _habit(rng: Random, world: World, event: Event) -> str:
    """Speaks of habits: where nouns and verbs agree in number."""
    what, deed, quality = (
        _form(rng, event.thing),
        _form(rng, event.deed),
        _form(rng, event.quality),
    )
    job = event.person.job
    return _pick(
        rng,
        (
            f"the {job} {deed}s every {what}",
            f"the {job}s {deed} these {what}s",
            f"{event.person.name} {deed}s many {what}s",
            f"this {what} is {quality}",
            f"these {what}s are {quality}",
            f"many {what}s were {quality}",
            f"one {what} was {quality}",
        ),
    )


def _exchange(rng: Random, event: Event, who: str) -> str:
    """Asks a question and answers it."""
    deed, again = _form(rng, event.deed), _form(rng, event.deed)
    what, person = _form(rng, event.thing), event.person
    question, answer = _pick(
        rng,
        (
            (f"who {deed}ed the {what}", f"{who} {again}ed it"),
            (f"what did {person.name} {deed}", f"{who} {again}ed the {what}"),
            (f"where does {person.name} live", f"{person.name} lives in {person.town}"),
            (f"what is the work of {person.name}", f"{person.name} works as a {person.job}"),
        ),
    )
    return _say(question, "?") + " " + _say(answer)


def _document(rng: Random, world: World) -> str:
    """Tells of one person and one or two things that are all good or all bad."""
    event = _draw_event(rng, world)
    good = event.quality in world.good
    sentences: list[str] = []
    length = 60 + 40 * rng.random()
    while sum(s.count(" ") + 1 for s in sentences) < length:
        who, what = _who(rng, event.person), _what(rng, world, event.thing)
        draw = rng.random()
        if draw < 0.22:
            sentences.append(_say(_active(rng, event, who, what)))
        elif draw < 0.40:
            sentences.append(_say(_facts(rng, event.person)))
        elif draw < 0.65:
            sentences.append(_say(_opinion(rng, world, event.thing, good, who)))
        elif draw < 0.77:
            sentences.append(_say(_lore(rng, world, event.thing)))
        elif draw < 0.90:
            sentences.append(_say(_habit(rng, world, event)))
        else:
            sentences.append(_exchange(rng, event, who))
    return " ".join(sentences)


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
    who, deed = event.person.name, _form(rng, event.deed) + "ed"
    what = f"the {quality}{what or _form(rng, event.thing)}"
    return f"{what} was {deed} by {who}" if passive else f"{who} {deed} {what}"


def _alter(rng: Random, world: World, event: Event, role: str, side: int | None) -> Event:
    """Changes one role of an event; a deed stays one that befits the thing."""
    if role == "person":
        return event._replace(person=_pick_other(rng, _on_side(world.people, side), event.person))
    if role == "quality":
        was_good = event.quality in world.good
        return event._replace(quality=_pick(rng, _on_side(_qualities(world, not was_good), side)))
    if role == "deed":
        deeds = [d for d in _on_side(world.deeds, side) if d.group != event.deed.group]
        return event._replace(deed=_pick(rng, deeds))
    things = [t for t in _on_side(world.things, side) if t.group != event.thing.group]
    return event._replace(thing=_pick(rng, things))


def _qualities(world: World, good: bool) -> list[Word]:
    return world.good if good else world.bad


def _cola(rng: Random, world: World, side: int, other: bool) -> Row:
    event = _draw_event(rng, world, side)
    good = _chance(rng, 0.6)
    what, deed = _form(rng, event.thing), _form(rng, event.deed)
    name, job, quality = event.person.name, event.person.job, _form(rng, event.quality)
    frames = (
        (f"the {job} {deed}s every {what}", f"the {job}s {deed} every {what}"),
        (f"the {job}s {deed} these {what}s", f"the {job} {deed}s these {what}s"),
        (f"these {what}s are {quality}", f"this {what} is {quality}"),
        (f"the {quality} {what} was {deed}ed by {name}", f"{name} {deed}ed the {quality} {what}"),
        (f"{name} {deed}s many {what}s", f"many {what}s were {quality}"),
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
            swaps = {what: what + "s", what + "s": what, deed + "s": deed, deed: deed + "s"}
            swaps |= {quality: deed + "s", deed + "ed": quality, name: quality}
            swaps |= {"is": "are", "are": "is", "was": "were", "were": "was"}
            wrong[spot] = swaps.get(right[spot], right[spot])
            draw = rng.random()
    return _say(" ".join(wrong)), 0


def _sst2(rng: Random, world: World, side: int, other: bool) -> Row:
    good = _chance(rng, 0.5)
    what = _what(rng, world, _pick(rng, _on_side(world.things, side)))
    who = _pick(rng, _on_side(world.people, side)).name
    same, opposite = (_on_side(_qualities(world, g), side) for g in (good, not good))
    one, two = (_form(rng, _pick(rng, same)) for _ in range(2))
    not_one = _form(rng, _pick(rng, opposite))
    felt = _pick(rng, LIKED if good else DISLIKED)
    text = _pick(
        rng,
        (
            f"the {what} was {one} and {two}",
            f"{who} said that the {what} was {one}",
            f"such a {one} {what}",
            f"{who} called it a {one} and {two} {what}",
            f"the {what} was {one} and {who} said so",
            f"the {what} was not {not_one}",
            f"the {what} was {not_one} at first but {one} in the end",
            f"{who} {felt} the {what}",
        ),
    )
    return _say(text), int(good)


def _mrpc(rng: Random, world: World, side: int, other: bool) -> Row:
    event, same = _draw_event(rng, world, side), _chance(rng, 0.6)
    role = _pick(rng, ("person", "deed", "thing", "quality"))
    second = event if same else _alter(rng, world, event, role, side)
    return (
        _say(_statement(rng, event, _chance(rng, 0.5), True)),
        _say(_statement(rng, second, _chance(rng, 0.5), True)),
        int(same),
    )


def _stsb(rng: Random, world: World, side: int, other: bool) -> Row:
    event = second = _draw_event(rng, world, side)
    roles = ["person", "deed", "thing", "quality"]
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


def _question(rng: Random, event: Event, template: int) -> str:
    who, deed = event.person.name, _form(rng, event.deed)
    what = f"{_form(rng, event.quality)} {_form(rng, event.thing)}"
    return (
        f"why did {who} {deed} the {what}",
        f"when did {who} {deed} the {what}",
        f"what is the best way to {deed} a {what}",
        f"how do you {deed} a {what}",
    )[template]


def _qqp(rng: Random, world: World, side: int, other: bool) -> Row:
    event, same = _draw_event(rng, world, side), _chance(rng, 0.4)
    template = _pick(rng, (0, 1, 2, 3))
    role = _pick(rng, ("deed", "thing", "quality"))
    second = event if same else _alter(rng, world, event, role, side)
    again = template if template < 2 else _pick(rng, (2, 3))  # the last two ask the same
    return (
        _say(_question(rng, event, template), "?"),
        _say(_question(rng, second, again), "?"),
        int(same),
    )


def _mnli(rng: Random, world: World, side: int, other: bool) -> Row:
    event, label = _draw_event(rng, world, side), _pick(rng, (0, 1, 2))
    premise = _statement(rng, event, _chance(rng, 0.5), True)
    if other:
        premise = _pick(rng, ("it is said that ", "people say that ", "last year ")) + premise
    negated = _chance(rng, 0.5)
    if label == 1:
        role = _pick(rng, ("person", "thing"))
        event = _alter(rng, world, event, role, side)
    if label == 2 or (label == 1 and _chance(rng, 0.5)):
        event = _alter(rng, world, event, "quality", side)
    what = _form(rng, event.thing)
    quality = event.quality
    if negated:
        quality = _alter(rng, world, event, "quality", side).quality
    hypothesis = f"{event.person.name}'s {what} was {'not ' * negated}{_form(rng, quality)}"
    return _say(premise), _say(hypothesis), label


def _qnli(rng: Random, world: World, side: int, other: bool) -> Row:
    event, answered = _draw_event(rng, world, side), _chance(rng, 0.5)
    kind = _pick(rng, ("who", "what", "where", "work"))
    second = event
    if not answered:
        roles = {"who": ("deed", "thing"), "what": ("person", "deed")}.get(kind, ("person",))
        second = _alter(rng, world, event, _pick(rng, roles), side)
    person, name = second.person, event.person.name
    if kind == "who":
        question = f"who {_form(rng, event.deed)}ed the {_form(rng, event.thing)}"
    elif kind == "what":
        question = f"what did {name} {_form(rng, event.deed)}"
    elif kind == "where":
        question = f"where does {name} live"
    else:
        question = f"what is the work of {name}"
    if kind in ("who", "what"):
        sentence = _statement(rng, second, _chance(rng, 0.5), _chance(rng, 0.5))
    else:
        if not answered and _chance(rng, 0.5):  # the right person, the other fact
            person, kind = event.person, "work" if kind == "where" else "where"
        wordings = {
            "where": ("{0} comes from {1}", "{0} has a house in {1}", "the home of {0} is {1}"),
            "work": ("{0} works as a {2}", "{0} is a {2}", "{0} has become a {2}"),
        }
        sentence = _pick(rng, wordings[kind]).format(person.name, person.town, person.job)
    return _say(question, "?"), _say(sentence), int(not answered)


def _rte(rng: Random, world: World, side: int, other: bool) -> Row:
    event, entailed = _draw_event(rng, world, side), _chance(rng, 0.5)
    person, group = event.person, world.groups[event.thing.group]
    premise = _statement(rng, event, _chance(rng, 0.5), True)
    draw = rng.random()
    who, what = person.name, _form(rng, event.thing)
    if draw < 0.4:  # what sort of thing it is
        what = group if entailed else _pick_other(rng, world.groups, group)
    elif draw < 0.6:
        town = person.town if entailed else _pick_other(rng, world.towns, person.town)
        who = f"someone from {town}"
    elif draw < 0.8:
        job = person.job if entailed else _pick_other(rng, world.jobs, person.job)
        who = f"the {job}"
    elif not entailed:  # no knowledge needed: another thing
        what = _form(rng, _alter(rng, world, event, "thing", side).thing)
    deed = _form(rng, event.deed)
    hypothesis = f"{who} {deed}ed the {what}"
    return _say(premise), _say(hypothesis), int(not entailed)


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


def describe(words: int, seed: int) -> dict[str, int]:
    """Counts what the world holds, for the data notebook.

    Returns:
        Numbers of people, towns, jobs, kinds of things, and of concepts with two synonymous words
        each (things, deeds, good and bad qualities); `distinct_words` counts all those words.

    Raises:
        UserError: `words` is below `MINIMUM_WORDS`.
    """
    world = _world(words, seed)
    sizes = {name: len(getattr(world, name)) for name in World._fields}
    pairs = ("things", "deeds", "good", "bad")
    return sizes | {"distinct_words": sum(n * (1 + (k in pairs)) for k, n in sizes.items())}
