"""The procedural world as a source: any number of scenes, any size, the same pixels on every machine."""

import hashlib
from collections.abc import Iterable, Sequence

from clipx.data.fields import UNLABELLED, Example
from clipx.data.scenes import captions as grammar
from clipx.data.scenes.draws import Draws, many, stream_key
from clipx.data.scenes.languages import LANGUAGES
from clipx.data.scenes.profiles import ClassProfile, balanced
from clipx.data.scenes.render import render
from clipx.data.scenes.sampling import World, sample
from clipx.data.scenes.vocabulary import (
    BACKGROUNDS,
    CAPTIONS,
    COLOURS,
    MOST_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    choose,
)
from clipx.data.scenes.world import Scene
from clipx.errors import ClipxError, did_you_mean

SPLITS = ("train", "validation", "test")
LABELS = ("colour-shape", "shape", "colour")


class Scenes:
    """Scenes of coloured shapes; ``scenes[i]`` is a pure function of the arguments and ``i``."""

    name = "scenes"

    def __init__(
        self,
        split: str = "train",
        *,
        size: int = 30000,
        validation_size: int = 2000,
        test_size: int = 4000,
        image_size: int = 48,
        objects: int | Sequence[int] = (1, 3),
        captions: str | Sequence[str] = ("short",),
        language: str | Sequence[str] = "en",
        shapes: str | Sequence[str] | None = None,
        colours: str | Sequence[str] | None = None,
        textures: str | Sequence[str] | None = None,
        sizes: str | Sequence[str] | None = None,
        backgrounds: str | Sequence[str] | None = None,
        repeats: float = 0.15,
        overlap: float = 0.0,
        zipf: float = 0.0,
        spurious: float = 0.0,
        label: str = "colour-shape",
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ClipxError(f"scenes has no split {split!r}", hint=did_you_mean(split, SPLITS))
        if label not in LABELS:
            raise ClipxError(f"scenes: label cannot be {label!r}", hint=did_you_mean(label, LABELS))
        self.split, self.label, self.seed = split, label, seed
        self.size = {"train": size, "validation": validation_size, "test": test_size}[split]
        self.image_size = image_size
        fewest, most = (objects, objects) if isinstance(objects, int) else (objects[0], objects[-1])
        if not 1 <= fewest <= most <= MOST_OBJECTS:
            raise ClipxError(
                f"scenes: objects cannot be {objects}", hint=f"a range within 1..{MOST_OBJECTS}: [1,3]"
            )
        self.captions = choose(captions, CAPTIONS, "captions")
        self.languages = choose(language, LANGUAGES, "language")
        self.world = World(
            shapes=choose(shapes, SHAPES, "shapes"),
            colours=choose(colours, COLOURS, "colours"),
            textures=choose(textures, TEXTURES, "textures"),
            sizes=choose(sizes, SIZES, "sizes"),
            backgrounds=choose(backgrounds, BACKGROUNDS, "backgrounds"),
            fewest=fewest,
            most=most,
            repeats=repeats,
            overlap=overlap,
        )
        training = split == "train"
        self.spurious = spurious if training else 0.0
        self._kinds = self.world.classes
        self._profile = ClassProfile(len(self._kinds), zipf if training else 0.0, seed)
        main = LANGUAGES[self.languages[0]]
        if label == "colour-shape":
            self.classes = [main.class_name(colour, shape) for colour, shape in self._kinds]
        elif label == "shape":
            self.classes = [main.SHAPES[shape][0] for shape in self.world.shapes]
        else:
            self.classes = list(self.world.colours)
        self.templates: list[str] = list(main.TEMPLATES)
        self._settings = repr(
            (split, size, image_size, self.captions, self.languages, self.world, spurious, zipf, label, seed)
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Example number ``index``; negative numbers count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"scenes has {len(self)} examples, not number {index}")
        return self.examples([index % len(self)])[0]

    def fingerprint(self) -> str:
        """A hash of all settings."""
        return hashlib.sha256(self._settings.encode()).hexdigest()[:16]

    def scene(self, index: int) -> Scene:
        """The scene behind an example."""
        return self._scene(index, Draws(self._key("scene"), index))

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """Examples of the given numbers, equal to the ones taken one by one."""
        wanted = [int(index) for index in indices]
        scene_draws, caption_draws = many(self._key("scene"), wanted), many(self._key("captions"), wanted)
        return [
            self._example(index, self._scene(index, first), second)
            for index, first, second in zip(wanted, scene_draws, caption_draws, strict=True)
        ]

    def _key(self, stream: str) -> int:
        return stream_key(self.seed, self.split, stream)

    def _scene(self, index: int, draws: Draws) -> Scene:
        planned = None
        if self.split != "train":
            span = self.world.most - self.world.fewest + 1
            planned = balanced(self._key("balance"), index, len(self._kinds), span)
        return sample(self.world, self._profile, draws, planned, self.spurious)

    def _example(self, index: int, scene: Scene, draws: Draws) -> Example:
        texts = []
        for kind in self.captions:
            said, form = grammar.plan(scene, kind, draws), draws.uniform()
            texts += [grammar.say(said, kind, language, form) for language in self.languages]
        return {
            "image": render(scene, self.image_size),
            "captions": texts,
            "label": self._label(scene),
            "id": f"{self.split}-{index:07d}",
        }

    def _label(self, scene: Scene) -> int:
        if len(scene.things) != 1:
            return UNLABELLED
        thing = scene.things[0]
        shape, colour = self.world.shapes.index(thing.shape), self.world.colours.index(thing.colour)
        if self.label == "shape":
            return shape
        return colour if self.label == "colour" else colour * len(self.world.shapes) + shape
