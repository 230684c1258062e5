"""What can be said of a scene, as structure, and whether it is true."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipx.data.scenes.world import Scene, Thing, holds


@dataclass(frozen=True, slots=True)
class Description:
    """A kind of thing: what is None is left open."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    texture: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the thing is of this kind."""
        return (
            (self.colour is None or self.colour == thing.colour)
            and (self.shape is None or self.shape == thing.shape)
            and (self.size is None or self.size == thing.size)
            and (self.texture is None or self.texture == thing.texture)
        )


@dataclass(frozen=True, slots=True)
class There:
    """The scene holds exactly ``count`` things of a kind."""

    what: Description
    count: int = 1


@dataclass(frozen=True, slots=True)
class Related:
    """The only thing of one kind stands in a relation to the only thing of another kind."""

    first: Description
    relation: str
    second: Description


@dataclass(frozen=True, slots=True)
class On:
    """The background is of a kind, a tint and a tone."""

    kind: str
    tint: str
    tone: int


@dataclass(frozen=True, slots=True)
class Written:
    """The words are written in the image."""

    words: str


Statement = There | Related | On | Written


def is_true(statement: Statement | Sequence[Statement], scene: Scene) -> bool:
    """Whether a statement, or every one of several, is true of a scene."""
    if isinstance(statement, There):
        return len(matching(statement.what, scene)) == statement.count
    if isinstance(statement, Related):
        first, second = matching(statement.first, scene), matching(statement.second, scene)
        return len(first) == len(second) == 1 and holds(statement.relation, first[0], second[0])
    if isinstance(statement, On):
        ground = scene.background
        return (statement.kind, statement.tint, statement.tone) == (ground.kind, ground.tint, ground.tone)
    if isinstance(statement, Written):
        return scene.words == statement.words
    return all(is_true(part, scene) for part in statement)


def matching(what: Description, scene: Scene) -> list[Thing]:
    """The things of a kind."""
    return [thing for thing in scene.things if what.fits(thing)]
