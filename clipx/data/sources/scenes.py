"""The procedural world as a source: any number of scenes, any size, the same pixels on every machine."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from clipx.data.fields import UNLABELLED, Example
from clipx.data.scenes import captions as grammar
from clipx.data.scenes import render as rendering
from clipx.data.scenes.captions import Said
from clipx.data.scenes.corruption import Corruption, corruption, garbled
from clipx.data.scenes.draws import Draws, many, stream_key
from clipx.data.scenes.languages import LANGUAGES, english
from clipx.data.scenes.negatives import KINDS, Negative, negative
from clipx.data.scenes.profiles import ClassProfile, balanced
from clipx.data.scenes.sampling import World, sample
from clipx.data.scenes.settings import Names, at_least, bounds, choose, chosen_if_any, one_of, rates
from clipx.data.scenes.styles import STYLES
from clipx.data.scenes.vocabulary import (
    BACKGROUNDS,
    CAPTIONS,
    COLOURS,
    MOST_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from clipx.data.scenes.words import absent_class
from clipx.data.scenes.world import Scene
from clipx.errors import ClipxError

SPLITS = ("train", "validation", "test")
LABELS = ("colour-shape", "shape", "colour")
EXTRAS = ("boxes", "masks", "depth")
SMALLEST = 16
STREAMS = ("scene", "captions", "balance", "looks", "corruption", "noise", "negatives")


class Scenes:
    """Scenes of coloured shapes; ``scenes[i]`` is a pure function of the arguments and ``i``.

    Args:
        split: train, validation or test; they share no random numbers.
        size, validation_size, test_size: examples of each split.
        image_size: pixels a side, 16 or more.
        objects: fewest and most objects in a scene, within 1..5; one number for exactly that many.
        captions: short, long, paraphrase, partial: an example has one of each that is named; object: one an
            object. With object or partial, ``caption_objects`` says which object each caption is about, and
            ``caption_attributes`` how many attributes of it are named, -1 for captions of the scene.
        language: en, it, de, zh; of several, every caption is given in each.
        shapes, colours, textures, sizes, backgrounds: what may occur; None for all.
        repeats: share of scenes of several objects that hold the same kind of object more than once.
        overlap: share of scenes of several objects in which one stands in front of another.
        relations: share of short captions of two objects that say how these stand to one another.
        words: share of images on which the name of a class that they do not show is written.
        style: None, or a style, or several of which each scene takes one.
        negatives: kinds of hard negatives, True for all; adds ``negative_captions``, one a caption, and
            ``negative_kinds``. A scene that allows none of the kinds takes another.
        negative_images: adds the scene that the first negative caption is true of.
        extras: boxes, masks, depth.
        zipf: exponent of the long tail of classes. Train only.
        spurious: share of scenes on the background of the first object's shape. Train only.
        caption_noise: share of examples whose captions have a damaged word. Train only.
        mismatched: share of examples whose captions are those of another example. Train only.
        label: what ``classes`` are; scenes of several objects are unlabelled.
        names: other words for those of the class names, such as ``{red: crimson}``; captions keep theirs.
        seed: of everything.

    Raises:
        ClipxError: an argument that names nothing or lies outside its range.
    """

    name = "scenes"

    def __init__(
        self,
        split: str = "train",
        *,
        size: int = 30000,
        validation_size: int = 2000,
        test_size: int = 4000,
        image_size: int = 40,
        objects: int | Sequence[int] = (1, 3),
        captions: str | Sequence[str] = ("short",),
        language: str | Sequence[str] = "en",
        shapes: Names = None,
        colours: Names = None,
        textures: Names = None,
        sizes: Names = None,
        backgrounds: Names = None,
        repeats: float = 0.15,
        overlap: float = 0.0,
        relations: float = 0.5,
        words: float = 0.0,
        style: Names = None,
        negatives: Names | bool = None,
        negative_images: bool = False,
        extras: Names = (),
        zipf: float = 0.0,
        spurious: float = 0.0,
        caption_noise: float = 0.0,
        mismatched: float = 0.0,
        label: str = "colour-shape",
        names: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        one_of(split, SPLITS, "split")
        one_of(label, LABELS, "label")
        sizes_by_split = {"train": size, "validation": validation_size, "test": test_size}
        at_least(1, size=size, validation_size=validation_size, test_size=test_size)
        at_least(SMALLEST, image_size=image_size)
        at_least(0, zipf=zipf)
        rates(
            repeats=repeats,
            overlap=overlap,
            relations=relations,
            words=words,
            spurious=spurious,
            caption_noise=caption_noise,
            mismatched=mismatched,
        )
        self.split, self.label, self.seed, self.size = split, label, int(seed), int(sizes_by_split[split])
        self.image_size = int(image_size)
        self.captions = choose(captions, CAPTIONS, "captions")
        self.languages = choose(language, LANGUAGES, "language")
        self.styles = chosen_if_any(style, STYLES, "style")
        self.negative_kinds = chosen_if_any(negatives, KINDS, "negatives")
        if negative_images and not self.negative_kinds:
            raise ClipxError(
                "scenes: negative_images needs negatives", hint="data.negatives=true gives all kinds"
            )
        if self.negative_kinds and "partial" in self.captions:
            raise ClipxError(
                "scenes: negatives change a colour, a shape or a count, which a partial caption may not say",
                hint="data.captions=[object], which says them all",
            )
        self.negative_images = bool(negative_images)
        self.extras = chosen_if_any(extras, EXTRAS, "extras")
        fewest, most = bounds(objects, MOST_OBJECTS, "objects")
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
        self.words, self.relations = words, relations
        # Held-out data stays balanced and clean: it is there to tell the harm.
        training = split == "train"
        self.zipf, self.spurious = (zipf, spurious) if training else (0.0, 0.0)
        self.caption_noise, self.mismatched = (caption_noise, mismatched) if training else (0.0, 0.0)
        self._profile = ClassProfile(len(self.world.classes), self.zipf, self.seed)
        main = LANGUAGES[self.languages[0]]
        self.classes: list[str] = {
            "colour-shape": [main.class_name(colour, shape) for colour, shape in self.world.classes],
            "shape": [main.SHAPES[shape][0] for shape in self.world.shapes],
            "colour": [main.colour_name(colour) for colour in self.world.colours],
        }[label]
        self.classes = _renamed(self.classes, names or {})
        self.templates: list[str] = list(main.TEMPLATES)
        self._keys = {stream: stream_key(self.seed, split, stream) for stream in STREAMS}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Example number ``index``; negative numbers count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"scenes has {len(self)} examples, not number {index}")
        return self.examples([index % len(self)])[0]

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """Examples of the given numbers, equal to the ones taken one by one."""
        wanted = [int(index) for index in indices]
        of_scene, of_captions = many(self._keys["scene"], wanted), many(self._keys["captions"], wanted)
        return [
            self._example(index, self._scene(index, first), second)
            for index, first, second in zip(wanted, of_scene, of_captions, strict=True)
        ]

    @property
    def labels(self) -> np.ndarray:
        """The label of every example, int64 [N], without rendering any; -1 for scenes of several objects."""
        return self._labels

    @cached_property
    def _labels(self) -> np.ndarray:
        if self.world.fewest > 1:
            return np.full(self.size, UNLABELLED)
        draws = many(self._keys["scene"], range(self.size))
        return np.array([self._label(self._scene(index, own)) for index, own in enumerate(draws)])

    @property
    def group_names(self) -> list[str]:
        """What ``groups`` tells apart: the styles, where scenes differ in theirs, else nothing."""
        return list(self.styles) if len(self.styles) > 1 else []

    @property
    def groups(self) -> np.ndarray:
        """The group of every example, int64 [N], places in ``group_names``, without rendering any."""
        return self._groups

    @cached_property
    def _groups(self) -> np.ndarray:
        place = {style: number for number, style in enumerate(self.group_names)}
        draws = many(self._keys["looks"], range(self.size))
        # The first draw of a scene's looks is its style: see _scene.
        return np.array([place[own.choice(self.styles)] for own in draws], dtype=np.int64)

    def fingerprint(self) -> str:
        """A hash of all settings and of the vocabulary."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        known = SHAPES, COLOURS, TEXTURES, SIZES, BACKGROUNDS
        return hashlib.sha256(repr((sorted(settings.items()), known)).encode()).hexdigest()[:16]

    def scene(self, index: int) -> Scene:
        """The scene behind an example."""
        return self._scene(index, self._draws("scene", index))

    def corruption(self, index: int) -> Corruption:
        """What is wrong with the captions of an example, so that curation can be checked."""
        draws = self._draws("corruption", index)
        return corruption(draws, index, self.size, self.caption_noise, self.mismatched)

    def negative(self, index: int, kind: str = "short") -> Negative | None:
        """A hard negative of what a caption of a kind says, as statements and as a scene."""
        scene = self.scene(index)
        said = grammar.plan(scene, kind, self._draws("captions", index), self.relations)
        return negative(self.world, scene, said, self.negative_kinds, self._draws("negatives", index))

    def _draws(self, stream: str, index: int) -> Draws:
        return Draws(self._keys[stream], index)

    def _scene(self, index: int, draws: Draws) -> Scene:
        planned = None
        if self.split != "train":
            counts = self.world.most - self.world.fewest + 1
            planned = balanced(self._keys["balance"], index, len(self.world.classes), counts)
        scene = sample(self.world, self._profile, draws, planned, self.spurious)
        if not self.words and not self.styles:
            return scene
        looks = self._draws("looks", index)
        style = looks.choice(self.styles) if self.styles else None
        key = int(looks.uniform() * 2**53)
        words = self._words(scene, looks) if looks.uniform() < self.words else None
        return replace(scene, style=style, key=key, words=words)

    def _words(self, scene: Scene, draws: Draws) -> str:
        colour, shape = absent_class(scene, self.world.classes, draws)
        if self.label == "shape":
            return english.SHAPES[shape][0]
        return colour if self.label == "colour" else english.class_name(colour, shape)

    def _example(self, index: int, scene: Scene, draws: Draws) -> Example:
        said = grammar.sayings(scene, self.captions, draws, self.relations)
        example: dict[str, Any] = {
            "image": rendering.render(scene, self.image_size),
            "captions": self._texts(index, said),
            "label": self._label(scene),
            "id": f"{self.split}-{index:07d}",
        }
        if {"object", "partial"} & {*self.captions}:
            example["caption_objects"] = [each.thing for each in said for _ in self.languages]
            example["caption_attributes"] = [each.attributes for each in said for _ in self.languages]
        if self.negative_kinds:
            self._add_negatives(example, index, scene, said)
        if "depth" in self.extras:
            example["depth"] = rendering.depths(scene)
        if "masks" in self.extras or "boxes" in self.extras:
            visible = rendering.masks(scene, self.image_size)
            if "masks" in self.extras:
                example["masks"] = visible
            if "boxes" in self.extras:
                example["boxes"] = rendering.boxes(visible)
        return cast(Example, example)

    def _texts(self, index: int, said: Sequence[Said]) -> list[str]:
        wrong = self.corruption(index) if self.caption_noise or self.mismatched else Corruption()
        if wrong.from_index is not None:
            other, draws = self.scene(wrong.from_index), self._draws("captions", wrong.from_index)
            said = grammar.sayings(other, self.captions, draws, self.relations)
        texts = _say(said, self.languages)
        if wrong.noisy:
            damage = self._draws("noise", index)
            texts = [garbled(text, damage) for text in texts]
        return texts

    def _add_negatives(self, example: dict[str, Any], index: int, scene: Scene, said: Sequence[Said]) -> None:
        draws = self._draws("negatives", index)
        found = [negative(self.world, scene, each.statements, self.negative_kinds, draws) for each in said]
        edits = [(edit, each) for edit, each in zip(found, said, strict=True) if edit is not None]
        example["negative_captions"] = _say(
            [each._replace(statements=edit.statements) for edit, each in edits], self.languages
        )
        example["negative_kinds"] = [edit.kind for edit, _ in edits for _ in self.languages]
        if self.negative_images and edits:
            example["negative_image"] = rendering.render(edits[0][0].scene, self.image_size)

    def _label(self, scene: Scene) -> int:
        if len(scene.things) != 1:
            return UNLABELLED
        thing = scene.things[0]
        shape, colour = self.world.shapes.index(thing.shape), self.world.colours.index(thing.colour)
        if self.label == "shape":
            return shape
        return colour if self.label == "colour" else colour * len(self.world.shapes) + shape


def _renamed(classes: Sequence[str], names: Mapping[str, str]) -> list[str]:
    words = {word for name in classes for word in name.split()}
    for word in names:
        one_of(word, sorted(words), "names: a word of its classes")
    renamed = [" ".join(str(names.get(word, word)) for word in name.split()) for name in classes]
    if len(set(renamed)) < len(renamed):
        raise ClipxError("scenes: names gives two classes the same name", hint="a word of its own for each")
    return renamed


def _say(said: Sequence[Said], languages: Sequence[str]) -> list[str]:
    return [
        grammar.say(each.statements, each.kind, language, each.form)
        for each in said
        for language in languages
    ]
