"""Draws scenes: how many things, of which classes, where, on what background."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.placement import Place, place_apart, place_overlapping
from clipx.data.scenes.profiles import ClassProfile
from clipx.data.scenes.shapes import covered
from clipx.data.scenes.vocabulary import DIAMETERS, SIZES, TINTS, TONES, contrast
from clipx.data.scenes.world import Background, Scene, Thing

ENOUGH_CONTRAST = 42.0
LEAN = 0.16
LEAST_COVERED, MOST_COVERED = 0.08, 0.4
OVERLAP_TRIES = 30
TINT_NAMES = tuple(TINTS)


@dataclass(frozen=True)
class World:
    """What scenes may hold and how often; names are of ``vocabulary``, rates in [0, 1]."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...]
    sizes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    fewest: int
    most: int
    repeats: float
    overlap: float

    @cached_property
    def classes(self) -> list[tuple[str, str]]:
        """Every (colour, shape), colour by colour; the class index is the position in this list."""
        return [(colour, shape) for colour in self.colours for shape in self.shapes]


def sample(
    world: World,
    profile: ClassProfile,
    draws: Draws,
    planned: tuple[int, int] | None = None,
    spurious: float = 0.0,
) -> Scene:
    """Draw one scene.

    Args:
        world: what may occur.
        profile: distribution of classes.
        draws: random numbers of this scene alone.
        planned: class index of the first thing and number of things minus ``fewest``; None to draw both.
        spurious: share of scenes whose background is the one that belongs to the first thing's shape.
    """
    span = world.most - world.fewest + 1
    drawn_class, drawn_count = profile.pick(draws.uniform()), draws.integer(span)
    first, extra = planned if planned is not None else (drawn_class, drawn_count)
    count = world.fewest + extra
    kinds = _kinds(world, profile, first, count, draws)
    sizes = [draws.integer(len(world.sizes)) for _ in kinds]
    radii = [draws.uniform(*DIAMETERS[count][SIZES.index(world.sizes[size])]) / 2 for size in sizes]
    classes = world.classes
    looks = [
        (*classes[kind], world.sizes[size], draws.choice(world.textures))
        for kind, size in zip(kinds, sizes, strict=True)
    ]
    leans = [draws.uniform(-LEAN, LEAN) for _ in looks]
    # Two alike that overlap would look like one.
    if count > 1 and world.overlap and kinds[0] != kinds[1] and draws.uniform() < world.overlap:
        things = _overlapping(looks, leans, radii, draws)
    else:
        things = _things(looks, leans, place_apart(radii, draws), range(count))
    return Scene(things, _background(world, things, draws, spurious))


def _things(
    looks: Sequence[tuple[str, str, str, str]],
    leans: Sequence[float],
    places: Sequence[Place],
    depths: Sequence[int],
) -> tuple[Thing, ...]:
    return tuple(
        Thing(shape, colour, size, texture, x, y, radius, lean, depth)
        for (colour, shape, size, texture), lean, (x, y, radius), depth in zip(
            looks, leans, places, depths, strict=True
        )
    )


def _overlapping(
    looks: Sequence[tuple[str, str, str, str]], leans: Sequence[float], radii: Sequence[float], draws: Draws
) -> tuple[Thing, ...]:
    """Things of which the first two overlap so that one sees that they do and what the farther one is."""
    depths = list(range(len(looks)))
    if draws.uniform() < 0.5:
        depths[0], depths[1] = 1, 0
    for _ in range(OVERLAP_TRIES):
        things = _things(looks, leans, place_overlapping(radii, draws), depths)
        front, back = (things[0], things[1]) if depths[0] == 0 else (things[1], things[0])
        if LEAST_COVERED <= covered(front, back) <= MOST_COVERED:
            return things
    return _things(looks, leans, place_apart(radii, draws), depths)


def _kinds(world: World, profile: ClassProfile, first: int, count: int, draws: Draws) -> list[int]:
    """Class of every thing: all different, or the first several times, so that a caption can name each."""
    kinds = [first]
    if count == 1:
        return kinds
    total = len(world.shapes) * len(world.colours)
    if draws.uniform() < world.repeats or total == 1:
        kinds *= 2 + draws.integer(count - 1)
    while len(kinds) < count:
        if len(set(kinds)) == total:
            return kinds + [first] * (count - len(kinds))
        other = profile.pick(draws.uniform())
        while other in kinds:
            other = (other + 1 + draws.integer(total)) % total
        kinds.append(other)
    return kinds


def partner(world: World, shape: str) -> tuple[str, str]:
    """The (tint, kind) of the background that goes with a shape when backgrounds are spurious."""
    rank, tints = world.shapes.index(shape), TINT_NAMES
    return tints[rank % len(tints)], world.backgrounds[(rank // len(tints)) % len(world.backgrounds)]


def _background(world: World, things: Sequence[Thing], draws: Draws, spurious: float) -> Background:
    kind, tint = draws.choice(world.backgrounds), draws.choice(TINT_NAMES)
    chance, tone_draw = draws.uniform(), draws.uniform()
    if chance < spurious:
        tint, kind = partner(world, things[0].shape)
    # Tone alone is left free to keep every object visible: tint and kind stay independent of the colours.
    clear = [min(contrast(thing.colour, tint, tone) for thing in things) for tone in range(len(TONES))]
    good = [tone for tone, value in enumerate(clear) if value >= ENOUGH_CONTRAST]
    tone = good[int(tone_draw * len(good))] if good else max(range(len(TONES)), key=clear.__getitem__)
    return Background(kind, tint, tone, draws.uniform(), draws.uniform(), draws.uniform())
