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
from typing import Any, NamedTuple

from helpers.base.errors import UserError

MINIMUM_WORDS = 200
# Share of rows whose label is redrawn, as human labels err too: nobody reaches the ceiling.
NOISE = 0.06
# Manners of being good, and as many of being bad: what a quality word keeps company with.
SHADES = 3

# Of the good and of the bad, by shade.
FELT = {True: ("liked", "loved", "praised"), False: ("disliked", "hated", "cursed")}
HOW = {True: ("gladly", "kindly", "proudly"), False: ("sadly", "angrily", "bitterly")}
ASKED = (("why", "for what reason"), ("when", "on which day"))
ROLES = ("person", "deed", "thing", "quality")
TRAIN_SIDE, DEV_SIDE = 0, 1
Row = tuple[Any, ...]  # the texts as the task orders them, then the label


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
    towns, deeds and things go together in the corpus. `qualities[True]` are the good ones.
    """

    people: list[Person]
    towns: list[str]
    jobs: list[str]
    groups: list[str]
    things: list[Word]
    deeds: list[Word]
    qualities: dict[bool, list[Word]]


class Topic(NamedTuple):
    """What a document is about: one group, of which all is good or bad in one manner."""

    group: int
    shade: int
    good: bool


class Event(NamedTuple):
    """What a sentence says: somebody did something to a thing that had a quality."""

    person: Person
    deed: Word
    thing: Word
    quality: Word


# --- drawing -------------------------------------------------------------------------------------


class Draw(Random):
    """Draws by random() alone, whose sequence is the one that Python promises never to change."""

    world: World

    def below(self, count: int) -> int:
        """A whole number from 0 on."""
        return int(self.random() * count)

    def pick(self, *options: Any) -> Any:  # noqa: ANN401
        """One of the arguments."""
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        """Whether it happens."""
        return self.random() < probability

    def form(self, word: Word) -> str:
        """One of the two words for a concept."""
        return self.pick(*word.forms)

    def both(self, word: Word) -> tuple[str, ...]:
        """The two words in either order: what is said twice is said in other words."""
        return word.forms[:: self.pick(1, -1)]

    def topic(self) -> Topic:
        """What a document, or a row, is about."""
        return Topic(self.below(len(self.world.groups)), self.below(SHADES), self.chance(0.5))

    def event(self, topic: Topic, side: int | None = None) -> Event:
        """Something that happens; without a side, to anybody."""
        world = self.world
        options = [(kind, topic.group) for kind in (world.people, world.deeds, world.things)]
        options.append((world.qualities[topic.good], topic.shade))
        return Event(*(self.pick(*_among(kind, side, group)) for kind, group in options))


def _among(options: Sequence[Any], side: int | None, group: int | None = None) -> list[Any]:
    """Those of a side and of a group; None stands for all."""
    return [o for o in options if side in (None, o.side) and group in (None, o.group)]


def _draw(*key: object, world: World | None = None) -> Draw:
    draw = Draw(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))
    draw.world = world
    return draw


@lru_cache(maxsize=4)
def _world(words: int, seed: int) -> World:
    if words < MINIMUM_WORDS:
        raise UserError(f"words is {words}; the world needs at least {MINIMUM_WORDS}")
    draw = _draw("world", words, seed)
    used: set[str] = set()

    def new_word() -> str:
        tries, word = 0, ""
        while not word or word in used:
            count = 2 + tries // 8
            pairs = (draw.pick(*"bdfgklmnprtvz") + draw.pick(*"aeiou") for _ in range(count))
            word, tries = "".join(pairs) + draw.pick(*"bdfgklmnprt"), tries + 1
        used.add(word)
        return word

    groups = [new_word() for _ in range(round(words**0.5 * 0.35))]
    jobs = [new_word() for _ in groups]
    towns = [new_word().capitalize() for _ in range(2 * len(groups))]
    left = words - len(groups) - len(jobs) - len(towns)

    def concepts(share: float, count: int) -> list[Word]:
        return [
            Word((new_word(), new_word()), i % count, i // count % 2)
            for i in range(int(left * share / 2))
        ]

    things, deeds = concepts(0.40, len(groups)), concepts(0.14, len(groups))
    qualities = {good: concepts(0.12, SHADES) for good in (True, False)}
    people = []
    for i in range(words - len(used)):
        turn, group = divmod(i, len(groups))
        town = towns[group + len(groups) * (turn // 2 % 2)]
        people.append(Person(new_word().capitalize(), town, group, turn % 2))
    return World(people, towns, jobs, groups, things, deeds, qualities)


# --- the corpus ----------------------------------------------------------------------------------
# A scene is two sentences on the topic of its document.


def _say(*texts: str, end: str = ".") -> str:
    return " ".join(text[0].upper() + text[1:] + end for text in texts)


def _event(draw: Draw, topic: Topic) -> str:
    """Tells an event twice: by synonyms, by what the thing is or by what the person is."""
    world, event = draw.world, draw.event(topic)
    name, town, job = event.person.name, event.person.town, world.jobs[topic.group]
    deeds, qualities, things = (draw.both(w) for w in (event.deed, event.quality, event.thing))
    whos = (name, draw.pick(f"the {job}", f"the {job}", f"someone from {town}"))
    whats = (things[0], draw.pick(things[1], world.groups[topic.group]))
    how = HOW[topic.good][topic.shade]
    texts = []
    for i in draw.pick((0, 1), (1, 0)):
        who, deed, what = whos[i], deeds[i], f"the {qualities[i]} {whats[i]}"
        passive = draw.chance(0.5)
        texts.append(
            f"{what} was {how} {deed} by {who}" if passive else f"{who} {how} {deed} {what}"
        )
    return _say(*texts)


def _fact(draw: Draw, person: Person, *wordings: str) -> str:
    job = draw.world.jobs[person.group]
    return draw.pick(*wordings).format(person.name, person.town, job)


def _homes(draw: Draw, topic: Topic) -> str:
    person = draw.pick(*_among(draw.world.people, None, topic.group))
    fellow = draw.pick(*(other for other in draw.world.people if other.town == person.town))
    wordings = ("{0} lives in {1}", "{0} comes from {1}", "in {1} lives {0}", "{0} is from {1}")
    return _say(*(_fact(draw, someone, *wordings) for someone in (person, fellow)))


def _jobs(draw: Draw, topic: Topic) -> str:
    people = [draw.pick(*_among(draw.world.people, None, topic.group)) for _ in range(2)]
    wordings = ("{0} is a {2}", "{0} works as a {2}", "{0} is a {2} from {1}")
    return _say(*(_fact(draw, person, *wordings) for person in people))


def _opinion(draw: Draw, topic: Topic) -> str:
    event = draw.event(topic)
    name, (what, again) = event.person.name, draw.both(event.thing)
    same = _among(draw.world.qualities[topic.good], None, topic.shade)
    other = _among(draw.world.qualities[not topic.good], None, topic.shade)
    one, two, three = (draw.form(draw.pick(*same)) for _ in range(3))
    opposite = draw.form(draw.pick(*other))
    felt = FELT[topic.good][topic.shade]
    opened = draw.pick(
        f"everybody {felt} the {one} {what}",
        f"the {what} was {one} and {two}",
        f"the {what} was not {opposite} but {one}",
        f"the {what} of {name} was {one}",
    )
    closed = draw.pick(
        f"{name} {felt} the {three} {again}",
        f"{name} {felt} it as {three}",
        f"everybody {felt} what was {three}",
    )
    return _say(opened, closed)


def _lore(draw: Draw, topic: Topic) -> str:
    one, two = draw.both(draw.pick(*_among(draw.world.things, None, topic.group)))
    kind = draw.world.groups[topic.group]
    name = draw.pick(f"a {one} is also called a {two}", f"a {one} is the same as a {two}")
    said = draw.pick("", "", "everybody knows that ")
    return _say(name, said + draw.pick(f"a {two} is a {kind}", f"every {one} is a {kind}"))


def _habit(draw: Draw, topic: Topic) -> str:
    """Speaks of one and of many, where verbs agree with nouns in number."""
    event = draw.event(topic)
    qualities, kind = draw.both(event.quality), draw.world.groups[topic.group]
    many = draw.pick(f"these {kind}s are", f"many {kind}s were")
    one = draw.pick("this {0} is", "one {0} was").format(draw.form(event.thing))
    return _say(f"{many} {qualities[0]}", f"{one} {qualities[1]}")


def _exchange(draw: Draw, topic: Topic) -> str:
    """Asks a question and answers it, or asks it again in other words."""
    event = draw.event(topic)
    (deed, again), (what, thing) = draw.both(event.deed), draw.both(event.thing)
    name, town, job = event.person.name, event.person.town, draw.world.jobs[topic.group]
    ask, reask = draw.pick(*ASKED)
    who, worker = draw.pick((name, name), (f"the {job}", name))
    question, answer, end = draw.pick(
        (f"who {deed} the {what}", f"{name} {again} the {thing}", "."),
        (f"what was {deed} by {name}", f"{name} {again} the {thing}", "."),
        (f"where does {name} live", f"{name} lives in {town}", "."),
        (f"what is the work of {name}", f"{name} works as a {job}", "."),
        (f"{ask} was the {what} {deed} by {who}", f"{reask} was it {again} by {worker}", "?"),
    )
    return _say(question, end="?") + " " + _say(answer, end=end)


# How often each comes. Events and opinions are many: their few frequent words (jobs, kinds,
# adverbs, verbs of liking) are what a small model learns first, and learns the rare words by.
SCENES = (*[_event] * 3, *[_opinion] * 3, _homes, _jobs, _lore, _habit, _exchange)


def documents(count: int, words: int, seed: int) -> Iterator[str]:
    """Writes the corpus of the world of so many open-class words: 60 to 120 words a document.

    The first documents of a longer corpus are those of a shorter one.
    """
    draw = _draw("documents", words, seed, world=_world(words, seed))
    for _ in range(count):
        topic, scenes, length = draw.topic(), [], 60 + 40 * draw.random()
        while sum(scene.count(" ") + 1 for scene in scenes) < length:
            scenes.append(draw.pick(*SCENES)(draw, topic))
        yield " ".join(scenes)


# --- tasks ---------------------------------------------------------------------------------------
# Every label uses every template and lengths alike, so that neither gives it away.


def _statement(draw: Draw, event: Event, adorned: float = 1.0) -> str:
    """Says an event in the active or the passive, with its quality as often as asked."""
    passive = draw.chance(0.5)
    adorned = adorned == 1 or draw.chance(adorned)
    quality = f"{draw.form(event.quality)} " if adorned else ""
    who, deed = event.person.name, draw.form(event.deed)
    what = f"the {quality}{draw.form(event.thing)}"
    return f"{what} was {deed} by {who}" if passive else f"{who} {deed} {what}"


def _alter(draw: Draw, event: Event, role: str, side: int, near: float = 0.2) -> Event:
    """Changes one role of an event: to something of the same group with probability `near`."""
    world = draw.world
    if role == "quality":
        opposite = world.qualities[event.quality not in world.qualities[True]]
        return event._replace(quality=draw.pick(*_among(opposite, side)))
    was = getattr(event, role)
    options = {"person": world.people, "deed": world.deeds, "thing": world.things}[role]
    options = [option for option in _among(options, side) if option != was]
    same = [option for option in options if option.group == was.group]
    if not (draw.chance(near) and same):
        same = [option for option in options if option.group != was.group]
    return event._replace(**{role: draw.pick(*same)})


def _differ(
    draw: Draw, event: Event, side: int, roles: Sequence[str] = ROLES, near: float = 0.2
) -> Event:
    """Makes another event: elsewhere in the world, or else (the hard rows) in one role only."""
    if not draw.chance(0.6):
        return _alter(draw, event, draw.pick(*roles), side, near)
    while (elsewhere := draw.event(draw.topic(), side)).thing.group == event.thing.group:
        pass
    return elsewhere._replace(quality=event.quality)


def _cola(draw: Draw, event: Event, side: int) -> Row:
    good = draw.chance(0.6)
    what, deed = draw.form(event.thing), draw.form(event.deed)
    name, quality = event.person.name, draw.form(event.quality)
    kind = draw.world.groups[event.thing.group]
    frames = (
        (f"these {kind}s are {quality}", f"this {what} is {quality}"),
        (f"many {kind}s were {deed} by {name}", f"one {what} was {deed} by {name}"),
        (f"the {quality} {what} was {deed} by {name}", f"{name} {deed} the {quality} {what}"),
        (f"{name} {deed} these {quality} {kind}s", f"{name} {deed} this {quality} {what}"),
    )
    right = draw.pick(*draw.pick(*frames)).split()
    if good:
        return _say(" ".join(right)), 1
    wrong, form = list(right), draw.random()
    while wrong == right:
        spot = draw.below(len(right) - 1)
        if form < 0.5:  # word order
            wrong[spot], wrong[spot + 1] = right[spot + 1], right[spot]
        else:  # a word of another class, or of the other number
            swaps = {what: quality, kind + "s": kind, quality: deed, deed: quality}
            swaps |= {"is": "are", "are": "is", "was": "were", "were": "was", name: quality}
            wrong[spot] = swaps.get(right[spot], right[spot])
            form = draw.random()
    return _say(" ".join(wrong)), 0


def _sst2(draw: Draw, side: int) -> Row:
    good = draw.chance(0.5)
    what = draw.form(draw.pick(*_among(draw.world.things, side)))
    who = draw.pick(*_among(draw.world.people, side)).name
    shade = draw.below(SHADES)
    same, opposite = (_among(draw.world.qualities[g], side, shade) for g in (good, not good))
    one, two = (draw.form(draw.pick(*same)) for _ in range(2))
    not_one = draw.form(draw.pick(*opposite))
    felt = FELT[good][shade]
    text = draw.pick(
        f"the {what} was {one} and {two}",
        f"the {one} {what} of {who}",
        f"what was {one} was the {what}",
        f"everybody knows that it was {one} and {two}",
        f"the {what} of {who} was {one}",
        f"the {what} was not {not_one}",
        f"the {what} was not {not_one} but {one}",
        f"{who} {felt} the {what}",
    )
    return _say(text), int(good)


def _mrpc(draw: Draw, event: Event, side: int) -> Row:
    same = draw.chance(0.6)
    second = event if same else _differ(draw, event, side)
    return _say(_statement(draw, event)), _say(_statement(draw, second)), int(same)


def _stsb(draw: Draw, event: Event, side: int) -> Row:
    second, roles, changes = event, list(ROLES), draw.below(5)
    for _ in range(changes):
        role = draw.pick(*roles)
        roles.remove(role)
        second = _alter(draw, second, role, side)
    score = round(min(5.0, max(0.0, 5 * (1 - changes / 4) + draw.random() - 0.5)), 1)
    return _say(_statement(draw, event)), _say(_statement(draw, second)), score


def _qqp(draw: Draw, event: Event, side: int) -> Row:
    same = draw.chance(0.4)
    second = event if same else _differ(draw, event, side)
    wordings, questions = draw.pick(*ASKED), []
    for asked in (event, second):
        ask = draw.pick(*wordings)
        what = f"{draw.form(asked.quality)} {draw.form(asked.thing)}"
        questions.append(f"{ask} was the {what} {draw.form(asked.deed)} by {asked.person.name}")
    return *(_say(question, end="?") for question in questions), int(same)


def _mnli(draw: Draw, event: Event, side: int, mismatched: bool) -> Row:
    label = draw.pick(0, 1, 2)
    premise = _statement(draw, event)
    if mismatched:  # another register
        premise = "everybody knows that " + premise
    flip = label == 2 or (label == 1 and draw.chance(0.5))
    if label == 1:
        event = _differ(draw, event, side, ("person", "thing"), near=0)
    negated = draw.chance(0.2)
    if flip != negated:
        event = _alter(draw, event, "quality", side)
    what = draw.pick(*event.thing.forms, draw.world.groups[event.thing.group])
    quality = "not " * negated + draw.form(event.quality)
    return _say(premise), _say(f"the {what} of {event.person.name} was {quality}"), label


def _qnli(draw: Draw, event: Event, side: int) -> Row:
    answered, kind = draw.chance(0.5), draw.pick("who", "what", "where", "work")
    second, name = event, event.person.name
    if not answered:
        roles = {"who": ("deed", "thing"), "what": ("person", "deed")}.get(kind, ("person",))
        second = _differ(draw, event, side, roles)
    person = second.person
    if kind == "who":
        question = f"who {draw.form(event.deed)} the {draw.form(event.thing)}"
    elif kind == "what":
        question = f"what was {draw.form(event.deed)} by {name}"
    else:
        question = f"where does {name} live" if kind == "where" else f"what is the work of {name}"
    if kind in ("who", "what"):
        sentence = _statement(draw, second, adorned=0.5)
    else:
        if not answered and draw.chance(0.3):  # the right person, the other fact
            person, kind = event.person, "work" if kind == "where" else "where"
        home = ("{0} comes from {1}", "{0} is from {1}", "in {1} lives {0}")
        work = ("{0} works as a {2}", "{0} is a {2}", "a {2} is the work of {0}")
        sentence = _fact(draw, person, *(home if kind == "where" else work))
    return _say(question, end="?"), _say(sentence), int(not answered)


def _rte(draw: Draw, event: Event, side: int) -> Row:
    entailed = draw.chance(0.5)
    premise, deed = _statement(draw, event), event.deed
    if not entailed:  # a job or kind is shared by its group: only another group makes it untrue
        event = _differ(draw, event, side, ("person", "thing"), near=0)
    person, world = event.person, draw.world
    who = draw.pick(person.name, f"the {world.jobs[person.group]}", f"someone from {person.town}")
    what = draw.pick(draw.form(event.thing), world.groups[event.thing.group])
    return _say(premise), _say(f"{who} {draw.form(deed)} the {what}"), int(not entailed)


def _row(draw: Draw, task: str, split: str) -> Row:
    side = TRAIN_SIDE if split == "train" else DEV_SIDE
    if task == "sst2":
        return _sst2(draw, side)
    event = draw.event(draw.topic(), side)
    if task == "mnli":
        return _mnli(draw, event, side, split == "validation_mismatched")
    rows = {"cola": _cola, "mrpc": _mrpc, "stsb": _stsb, "qqp": _qqp, "qnli": _qnli, "rte": _rte}
    return rows[task](draw, event, side)


def rows(task: str, split: str, count: int, words: int, seed: int) -> list[Row]:
    """Makes one split of one task: its texts, then the label (an int; for stsb 0.0 to 5.0).

    Task and split are called as in GLUE; MNLI's mismatched half has other wordings than train.
    """
    draw = _draw("task", task, split, words, seed, world=_world(words, seed))
    seen: set[tuple[str, ...]] = set()
    table = []
    for _ in range(count):
        for _ in range(50):  # a row twice only where the world has no more to say
            *texts, label = _row(draw, task, split)
            if tuple(texts) not in seen:
                break
        seen.add(tuple(texts))
        if task != "stsb" and draw.chance(NOISE):
            label = draw.below(3 if task == "mnli" else 2)
        table.append((*texts, label))
    return table
