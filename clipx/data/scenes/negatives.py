"""Hard negatives: statements one edit away from true ones, with the scene that the edit would make true."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.placement import MARGIN, is_free, place_apart
from clipx.data.scenes.sampling import ENOUGH_CONTRAST, World
from clipx.data.scenes.statements import Description, Related, Statement, There, is_true, matching
from clipx.data.scenes.vocabulary import DIAMETERS, MOST_OBJECTS, OPPOSITE, SIZES, contrast
from clipx.data.scenes.world import Scene, Thing

Statements = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Negative:
    """An edit of a kind: statements false of the original scene, and the scene that they are true of."""

    kind: str
    statements: Statements
    scene: Scene


def is_negative(edit: Negative, scene: Scene, statements: Statements) -> bool:
    """Whether an edit is false of the scene, true of its own, and its own scene falsifies the original."""
    return (
        not is_true(edit.statements, scene)
        and is_true(edit.statements, edit.scene)
        and not is_true(statements, edit.scene)
    )


def negative(
    world: World, scene: Scene, statements: Statements, kinds: Sequence[str], draws: Draws
) -> Negative | None:
    """A verified negative of one of the kinds, in a drawn order; of any kind where none of these can be made.

    Returns:
        None only where no edit exists (a world of one class whose scenes cannot change their count).
    """
    wanted = draws.shuffled(kinds)
    for kind in [*wanted, *(kind for kind in FALLBACKS if kind not in wanted)]:
        for edit in KINDS[kind](world, scene, statements, draws):
            candidate = Negative(kind, *edit)
            if is_negative(candidate, scene, statements):
                return candidate
    return None


Edits = list[tuple[Statements, Scene]]
Kind = tuple[str, str]
"""Colour and shape."""


def _described(statements: Statements) -> list[Description]:
    found: list[Description] = []
    for statement in statements:
        if isinstance(statement, There):
            found.append(statement.what)
        elif isinstance(statement, Related):
            found += [statement.first, statement.second]
    return list(dict.fromkeys(found))


def _reworded(statements: Statements, change: Callable[[Description], Description]) -> Statements:
    result: list[Statement] = []
    for statement in statements:
        if isinstance(statement, There):
            result.append(replace(statement, what=change(statement.what)))
        elif isinstance(statement, Related):
            first, second = change(statement.first), change(statement.second)
            result.append(Related(first, statement.relation, second))
        else:
            result.append(statement)
    return tuple(result)


def _classes(statements: Statements) -> list[Kind]:
    described = _described(statements)
    return list(dict.fromkeys((what.colour, what.shape) for what in described if what.colour and what.shape))


def _of(scene: Scene, kind: Kind) -> list[Thing]:
    return matching(Description(*kind), scene)


def change_colour(world: World, scene: Scene, statements: Statements, draws: Draws) -> Edits:
    """One kind of thing takes a colour that no thing of its shape has."""
    old, shape = draws.choice(_classes(statements))
    free = [
        colour
        for colour in world.colours
        if colour != old and not any((thing.colour, thing.shape) == (colour, shape) for thing in scene.things)
    ]
    ground = scene.background
    visible = [colour for colour in free if contrast(colour, ground.tint, ground.tone) >= ENOUGH_CONTRAST]
    return [
        _renamed(scene, statements, (old, shape), (new, shape)) for new in draws.shuffled(visible or free)[:1]
    ]


def change_object(world: World, scene: Scene, statements: Statements, draws: Draws) -> Edits:
    """One kind of thing becomes another shape of the same colour."""
    colour, old = draws.choice(_classes(statements))
    taken = {thing.shape for thing in scene.things if thing.colour == colour}
    free = [shape for shape in world.shapes if shape != old and shape not in taken]
    return [_renamed(scene, statements, (colour, old), (colour, new)) for new in draws.shuffled(free)[:1]]


def _renamed(scene: Scene, statements: Statements, old: Kind, new: Kind) -> tuple[Statements, Scene]:
    colour, shape = new
    members = _of(scene, old)
    things = tuple(
        replace(thing, colour=colour, shape=shape) if thing in members else thing for thing in scene.things
    )

    def change(what: Description) -> Description:
        return replace(what, colour=colour, shape=shape) if (what.colour, what.shape) == old else what

    return _reworded(statements, change), replace(scene, things=things)


def swap_attribute(world: World, scene: Scene, statements: Statements, draws: Draws) -> Edits:
    """Two things exchange an attribute that the statements name: colour, shape, size or texture."""
    single = [what for what in _described(statements) if len(matching(what, scene)) == 1]
    pairs = [
        (first, second, attribute)
        for position, first in enumerate(single)
        for second in single[position + 1 :]
        for attribute in ("colour", "shape", "size", "texture")
        if None not in (getattr(first, attribute), getattr(second, attribute))
        and getattr(first, attribute) != getattr(second, attribute)
        and (first.colour, first.shape) != (second.colour, second.shape)
    ]
    return [_swapped(scene, statements, *pair) for pair in draws.shuffled(pairs)]


def _swapped(
    scene: Scene, statements: Statements, first: Description, second: Description, attribute: str
) -> tuple[Statements, Scene]:
    one, other = matching(first, scene)[0], matching(second, scene)[0]
    to_one, to_other = getattr(other, attribute), getattr(one, attribute)
    changed = {
        id(one): replace(one, **{attribute: to_one}),
        id(other): replace(other, **{attribute: to_other}),
    }
    if attribute == "size":
        # A size is seen: the radii change hands too, and the places where the larger thing would not fit.
        keep = _fits(one, other.radius, scene, other) and _fits(other, one.radius, scene, one)
        for thing, partner in ((one, other), (other, one)):
            place = thing if keep else partner
            changed[id(thing)] = replace(changed[id(thing)], radius=partner.radius, x=place.x, y=place.y)
    things = tuple(changed.get(id(thing), thing) for thing in scene.things)

    def change(what: Description) -> Description:
        for thing, value in ((one, to_one), (other, to_other)):
            if what.fits(thing) and getattr(what, attribute) is not None:
                return replace(what, **{attribute: value})
        return what

    return _reworded(statements, change), replace(scene, things=things)


def _fits(thing: Thing, radius: float, scene: Scene, partner: Thing) -> bool:
    """Whether a thing could have another radius where it is; ``partner`` will then have this one's."""
    places = [
        (other.x, other.y, thing.radius if other is partner else other.radius)
        for other in scene.things
        if other is not thing
    ]
    inside = radius + MARGIN <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 1 - radius - MARGIN
    return inside and is_free(thing.x, thing.y, radius, places)


def swap_relation(world: World, scene: Scene, statements: Statements, draws: Draws) -> Edits:
    """A relation turns into its opposite; the scene is mirrored along it, or the two things change depth."""
    related = [statement for statement in statements if isinstance(statement, Related)]
    return [_turned(scene, statements, statement) for statement in draws.shuffled(related)]


def _turned(scene: Scene, statements: Statements, turned: Related) -> tuple[Statements, Scene]:
    if turned.relation in ("front", "behind"):
        one, other = matching(turned.first, scene)[0], matching(turned.second, scene)[0]
        depth = {id(one): other.depth, id(other): one.depth}
        things = tuple(replace(thing, depth=depth.get(id(thing), thing.depth)) for thing in scene.things)
        alike = {(turned.first, turned.second), (turned.second, turned.first)}
        edited = [
            replace(part, relation=OPPOSITE[part.relation])
            if isinstance(part, Related) and (part.first, part.second) in alike
            else part
            for part in statements
        ]
        return tuple(edited), replace(scene, things=things)
    axis = ("left", "right") if turned.relation in ("left", "right") else ("above", "below")
    if axis[0] == "left":
        things = tuple(replace(thing, x=1 - thing.x) for thing in scene.things)
    else:
        things = tuple(replace(thing, y=1 - thing.y) for thing in scene.things)
    edited = [
        replace(part, relation=OPPOSITE[part.relation])
        if isinstance(part, Related) and part.relation in axis
        else part
        for part in statements
    ]
    return tuple(edited), replace(scene, things=things)


def change_count(world: World, scene: Scene, statements: Statements, draws: Draws) -> Edits:
    """One more, or one fewer, of a kind of thing."""
    counted = [statement for statement in statements if isinstance(statement, There)]
    edits: Edits = []
    for statement in draws.shuffled(counted):
        steps = [1] if statement.count == 1 else [1, -1]
        if len(scene.things) >= MOST_OBJECTS:
            steps.reverse()
        else:
            steps = draws.shuffled(steps)
        for step in steps:
            new = replace(statement, count=statement.count + step)
            edited = tuple(new if part is statement else part for part in statements)
            member = matching(statement.what, scene)[-1]
            things = _with(scene, member, draws) if step > 0 else _without(scene, member)
            edits.append((edited, replace(scene, things=things)))
    return edits


def _without(scene: Scene, removed: Thing) -> tuple[Thing, ...]:
    left = [thing for thing in scene.things if thing is not removed]
    return tuple(replace(thing, depth=thing.depth - (thing.depth > removed.depth)) for thing in left)


def _with(scene: Scene, model: Thing, draws: Draws) -> tuple[Thing, ...]:
    """The things and one more like ``model``: where there is room, else all smaller, else all placed anew."""
    count = len(scene.things) + 1
    things = scene.things
    sizes = [SIZES.index(thing.size) for thing in (*things, model)]
    ranges = DIAMETERS[min(count, MOST_OBJECTS)]
    radii = [sum(ranges[size]) / 4 for size in sizes]
    smaller = tuple(
        replace(thing, radius=min(thing.radius, radius)) for thing, radius in zip(things, radii, strict=False)
    )
    for present in (things, smaller):
        radius = present[things.index(model)].radius
        places = [(thing.x, thing.y, thing.radius) for thing in present]
        low, high = radius + MARGIN, 1 - radius - MARGIN
        for _ in range(24):
            x, y = draws.uniform(low, high), draws.uniform(low, high)
            if is_free(x, y, radius, places):
                return (*present, replace(model, x=x, y=y, radius=radius, depth=len(present)))
    placed = place_apart(radii, draws)
    everything = (*things, replace(model, depth=len(things)))
    return tuple(
        replace(thing, x=x, y=y, radius=radius)
        for thing, (x, y, radius) in zip(everything, placed, strict=True)
    )


KINDS: dict[str, Callable[[World, Scene, Statements, Draws], Edits]] = {
    "swap-attribute": swap_attribute,
    "swap-relation": swap_relation,
    "change-object": change_object,
    "change-colour": change_colour,
    "change-count": change_count,
}
"""Every kind of negative; each proposes edits, of which ``negative`` takes the first that it can verify."""

FALLBACKS = ("change-colour", "change-object", "change-count")
"""Kinds that some scene of one object allows, for where the wanted kinds do not apply."""
