"""What a caption says of a scene (as statements), and how a language says it."""

from collections.abc import Sequence
from itertools import pairwise

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.languages import LANGUAGES
from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written
from clipx.data.scenes.world import Scene, Thing, relation

DETAIL = 0.25
"""Chance that a short caption of several things mentions a size, and again a texture."""


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
