"""What a caption says of a scene (as statements), and how a language says it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.languages import LANGUAGES
from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written, matching
from clipx.data.scenes.world import Scene, Thing, relation

ATTRIBUTES = ("colour", "shape", "size", "texture")

DETAIL = 0.25
"""Chance that a short caption of several things mentions a size, and again a texture."""


class Said(NamedTuple):
    """What one caption says: its kind, its statements, its surface form in [0, 1); the object that it is
    about, a place among the things of the scene, and how many attributes of it are named, both -1 where it is
    about the scene.
    """

    kind: str
    statements: tuple[Statement, ...]
    form: float
    thing: int = -1
    attributes: int = -1


def sayings(scene: Scene, kinds: Sequence[str], draws: Draws, relations: float = 0.5) -> list[Said]:
    """What the captions of a scene say, those of one kind after those of another.

    Args:
        scene: what they are about.
        kinds: of ``vocabulary.CAPTIONS``.
        draws: random numbers of these captions.
        relations: as ``plan`` takes it.
    """
    found = []
    for kind in kinds:
        if kind == "object":
            found += _objects(scene)
        elif kind == "partial":
            found.append(_partial(scene, draws))
        else:
            found.append(Said(kind, plan(scene, kind, draws, relations), draws.uniform()))
    return found


def _objects(scene: Scene) -> list[Said]:
    """A caption for each thing, with all its attributes; one for things that are alike."""
    whole = {Description(each.colour, each.shape, each.size, each.texture): -1 for each in scene.things}
    for place, each in reversed(list(enumerate(scene.things))):
        whole[Description(each.colour, each.shape, each.size, each.texture)] = place
    return [
        Said("object", (There(what, len(matching(what, scene))),), 0.0, place, _named(what))
        for what, place in whole.items()
    ]


def _partial(scene: Scene, draws: Draws) -> Said:
    """One thing by some of its attributes: n of them with a probability in proportion to 1 / n."""
    place = draws.integer(len(scene.things))
    thing = scene.things[place]
    known = [name for name in ATTRIBUTES if (name, getattr(thing, name)) != ("texture", "solid")]
    shares = [1 / count for count in range(1, len(known) + 1)]
    left, count = draws.uniform() * sum(shares), 1
    while count < len(known) and left >= shares[count - 1]:
        left, count = left - shares[count - 1], count + 1
    what = Description(**{name: getattr(thing, name) for name in draws.shuffled(known)[:count]})
    return Said("partial", (There(what, len(matching(what, scene))),), 0.0, place, count)


def _named(what: Description) -> int:
    """How many attributes a caption says; that a thing is of one colour is not said."""
    return sum(getattr(what, name) not in (None, "solid") for name in ATTRIBUTES)


def plan(scene: Scene, kind: str, draws: Draws, relations: float = 0.5) -> tuple[Statement, ...]:
    """What a caption says; every statement is true of the scene.

    Args:
        scene: what it is about.
        kind: short, long or paraphrase.
        draws: random numbers of this caption.
        relations: share of short captions of two things that say how these stand to one another.
    """
    groups = grouped(scene, draws)
    if kind == "long":
        return _everything(scene, groups)
    if len(groups) == 1:
        thing, count = groups[0]
        return (There(named(thing), count),)
    details = [_detailed(thing, draws) if count == 1 else named(thing) for thing, count in groups]
    if len(scene.things) == 2 and draws.uniform() < relations:
        how = relation(groups[0][0], groups[1][0])
        if how is not None:
            return (Related(details[0], how, details[1]),)
    return tuple(There(what, count) for what, (_, count) in zip(details, groups, strict=True))


def grouped(scene: Scene, draws: Draws) -> list[tuple[Thing, int]]:
    """Things by colour and shape, one of each with how many there are, in an order drawn for the caption."""
    if len(scene.things) == 1:
        return [(scene.things[0], 1)]
    groups: dict[tuple[str, str], list[Thing]] = {}
    for thing in scene.things:
        groups.setdefault((thing.colour, thing.shape), []).append(thing)
    return draws.shuffled([(members[0], len(members)) for members in groups.values()])


def named(thing: Thing) -> Description:
    """The thing by colour and shape, which no other kind of thing in its scene shares."""
    return Description(thing.colour, thing.shape)


def _detailed(thing: Thing, draws: Draws) -> Description:
    size = thing.size if draws.uniform() < DETAIL else None
    texture = thing.texture if draws.uniform() < DETAIL and thing.texture != "solid" else None
    return Description(thing.colour, thing.shape, size, texture)


def _everything(scene: Scene, groups: Sequence[tuple[Thing, int]]) -> tuple[Statement, ...]:
    statements: list[Statement] = []
    for thing, count in groups:
        full = Description(thing.colour, thing.shape, thing.size, thing.texture)
        statements.append(There(full, 1) if count == 1 else There(named(thing), count))
    single = [thing for thing, count in groups if count == 1]
    for first, second in pairwise(single):
        how = relation(first, second)
        if how is not None:
            statements.append(Related(named(first), how, named(second)))
    ground = scene.background
    statements.append(On(ground.kind, ground.tint, ground.tone))
    if scene.words is not None:
        statements.append(Written(scene.words))
    return tuple(statements)


def say(statements: Sequence[Statement], kind: str, language: str, form: float = 0.0) -> str:
    """Statements as text.

    Args:
        statements: what ``plan`` gave, or an edit of it.
        kind: short, long or paraphrase.
        language: a key of ``languages.LANGUAGES``.
        form: in [0, 1), which surface form a paraphrase takes.
    """
    grammar = LANGUAGES[language]
    if kind == "paraphrase":
        return str(grammar.paraphrase(statements, form))
    return str(grammar.long(statements) if kind == "long" else grammar.short(statements))
