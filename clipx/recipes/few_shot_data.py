"""A data set as few-shot adaptation takes it: shots, images to choose on, those that are measured on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from clipx import console
from clipx.data.fewshot import Draw, draw, labels_of, relabelled, validation_shots
from clipx.data.shots import ShotImages
from clipx.data.transforms import STRETCHED, TrainTransform
from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.features.together import encode_together
from clipx.features.views import Chosen, Views
from clipx.inference.adapted import rows_of
from clipx.models.clip import CLIP
from clipx.recipes.frozen import check_skipped, encoded, encoding_settings, progress
from clipx.recipes.parts import open_source
from clipx.recipes.sharing import kept
from clipx.run import Run, launched


@dataclass(frozen=True)
class Shots:
    """Drawn images, embedded: which they are, and the rows they gave (several an image where it has views).

    ``labels`` int64 ``[N]`` are places in the classes that were asked for, ``groups`` int64 ``[N]`` the image
    of each row as its place in ``drawn``.
    """

    drawn: Draw
    features: FeatureSet
    labels: Tensor
    groups: Tensor

    @property
    def ids(self) -> list[str]:
        """The name of every image, in the order of ``drawn``."""
        _, first = np.unique(self.groups.numpy(), return_index=True)
        return [self.features.ids[place] for place in first.tolist()]


class FewShotData:
    """A data set embedded by one model, for adapters that need the same of an image.

    Args:
        clip: the model.
        needs: what adapters take, one of ``protocol.NEEDS``.
        config: of ``clipx adapt``.
        run: says what is drawn and passed over.

    Attributes:
        names: of the classes.
        all: the classes themselves, ``[0, C)``.
        draws: seed -> part -> the names of the images that were drawn.
        validation_regime: what hyperparameters are chosen on; ``none`` once there turns out to be no such
            split.

    Raises:
        ClipxError: fewer than two classes, a label without a class, or what opening the data raises.
    """

    def __init__(self, clip: CLIP, needs: str, config: DictConfig, run: Run) -> None:
        self.clip, self.needs, self.config, self.run = clip, needs, config, run
        self.source = open_source(config.data, "train")
        self.labels = labels_of(self.source)
        self.names = [str(name) for name in config.labels or self.source.classes or []]
        if len(self.names) < 2:
            raise ClipxError(
                f"there are {len(self.names)} classes: nothing to tell apart", hint="two classes or more"
            )
        if self.labels.max() >= len(self.names):
            raise ClipxError(
                f"the data has label {int(self.labels.max())}, but names for {len(self.names)} classes only",
                hint="one name a class: labels=[...], or data.class_names",
            )
        self.all = list(range(len(self.names)))
        self.draws: dict[int, dict[str, list[str]]] = {}
        self.validation_regime = "leaky" if config.leaky_parity else str(config.val)
        self._together = False
        self._warned: set[str] = set()

    def encode_together(self, seeds: Sequence[int], classes: Sequence[int]) -> None:
        """Encode all that learning these classes takes with all processes of a launch; collective.

        Fitting is left to one of them: the others need not wait for it.
        """
        self._together, began = True, time.monotonic()
        test = self.test()
        for seed in seeds:
            self.shots(seed, classes)
            self.validation(seed, classes, test)
        self._together = False
        if self.run.writes:
            seconds = console.duration(time.monotonic() - began)
            console.info(f"encoded by {launched()} processes in {seconds}")

    def warn(self, message: str) -> None:
        """Say something once a run."""
        if self.run.writes and message not in self._warned:
            self._warned.add(message)
            console.warn(message)

    def test(self, clip: CLIP | None = None) -> FeatureSet:
        """The split that is measured on, embedded by this model or by an adapted tower."""
        split = self.config.split
        features = self.whole(open_source(self.config.data, split), split, split, clip)
        if not self._together:
            check_skipped(features, split, self.config.max_bad, self.run)
        return features

    def whole(self, source: Any, split: str, what: str, clip: CLIP | None = None) -> FeatureSet:
        """A whole split, up to ``limit``, as adapters take it, embedded by this model or by an adapted tower.

        Args:
            source: also of other data.
            split: its name.
            what: what to call the images.
            clip: None for this model.
        """
        bank = "pre_projection" if self.needs == "pre_projection" else "image"
        return self._encoded(source, split, bank, f"{what} images", clip=clip, limit=self.config.limit)

    def groups(self, test: FeatureSet) -> tuple[Tensor, list[str]] | None:
        """The group of every labelled image that is measured on, and the names; None for no groups."""
        names = list(getattr(self.source, "group_names", []))
        if len(names) < 2:
            return None
        source = open_source(self.config.data, self.config.split)
        return torch.from_numpy(source.groups)[test.index][test.labels >= 0], names

    def labels_among(self, test: FeatureSet, classes: Sequence[int]) -> Tensor:
        """The class of every row as a place in these classes, -1 for any other: int64 ``[N]``.

        Raises:
            ClipxError: a label that no class has.
        """
        labels = test.labels.numpy()
        if len(labels) and labels.max() >= len(self.names):
            raise ClipxError(
                f"label {int(labels.max())} is outside the {len(self.names)} classes",
                hint="one name a class: labels=[...], or data.class_names",
            )
        return torch.from_numpy(relabelled(labels, classes))

    def shots(self, seed: int, classes: Sequence[int]) -> Shots:
        """Training images of these classes, embedded in as many views as are asked for."""
        shots, views = self.config.shots, self.config.views
        found = self._drawn("train", self.source, self.labels, shots, seed, classes, views)
        self._say_short(found.drawn)
        return found

    def validation(self, seed: int, classes: Sequence[int], test: FeatureSet) -> tuple[Tensor, Tensor] | None:
        """Rows and labels to choose hyperparameters on, as the regime has it; None for none."""
        if self.config.leaky_parity:
            own = self.labels_among(test, classes)
            return rows_of(test, self.needs)[own >= 0], own[own >= 0]
        shots = validation_shots(self.config.val, self.config.shots)
        if shots == 0 or self._held_out is None:
            return None
        source, labels = self._held_out
        if not np.isin(labels, list(classes)).any():
            return None
        found = self._drawn("validation", source, labels, shots, seed, classes, views=1)
        return rows_of(found.features, self.needs), found.labels

    def images(self, shots: Shots, seed: int, classes: Sequence[int]) -> ShotImages:
        """The shots themselves, for methods that train the towers."""
        low, high = self.config.view_scale
        transform = TrainTransform(
            self.clip.image_size,
            (low, high),
            STRETCHED,
            flip=self.config.view_flip,
            interpolation=self.clip.preprocess_cfg["interpolation"],
        )
        return ShotImages(
            self.source,
            shots.drawn.indices.tolist(),
            relabelled(shots.drawn.labels, classes).tolist(),
            transform=transform,
            preprocess=self.clip.preprocess,
            seed=seed,
        )

    @cached_property
    def _held_out(self) -> tuple[Any, NDArray[np.int64]] | None:
        """The validation split and its labels; None, which is said, where the data has none."""
        try:
            source = open_source(self.config.data, "validation")
            return source, labels_of(source)
        except ClipxError as problem:
            self.warn(f"no validation images ({problem.message}): fixed values are used, as val=none does")
            self.validation_regime = "none"
            return None

    def _drawn(
        self,
        part: str,
        source: Any,
        labels: NDArray[np.int64],
        shots: int | None,
        seed: int,
        classes: Sequence[int],
        views: int,
    ) -> Shots:
        """Draw until every image that was drawn can be used."""
        unusable = set[int]()
        bank = "pre_projection" if self.needs == "pre_projection" else "raw"
        what = f"{part} {'views' if views > 1 else 'images'} of seed {seed}"
        while True:
            drawn = draw(
                labels,
                shots,
                classes=classes,
                dataset=str(source.name),
                seed=seed,
                nested=self.config.nested,
                part=part,
                unusable=unusable,
            )
            if not len(drawn):
                raise ClipxError(f"no class has a {part} image", hint="more data, or val=none")
            features = self._encoded(self._viewed(source, drawn, views), part, bank, what, announce=False)
            place = {index: number for number, index in enumerate(drawn.indices.tolist())}
            groups = (
                features.index // views if views > 1 else features.index.clone().apply_(place.__getitem__)
            )
            lost = set(range(len(drawn))) - set(groups.unique().tolist())
            if not lost:
                break
            self.warn(f"{part} images that cannot be used, others drawn instead: {len(lost)}")
            unusable |= {int(drawn.indices[number]) for number in lost}
        local = torch.from_numpy(relabelled(drawn.labels, classes))
        found = Shots(drawn, features, local[groups], groups)
        self.draws.setdefault(seed, {})[part] = found.ids
        return found

    def _viewed(self, source: Any, drawn: Draw, views: int) -> Any:
        indices = tuple(drawn.indices.tolist())
        if views == 1:
            return kept("selection", indices, (source,), lambda: Chosen(source, indices))
        low, high = self.config.view_scale
        flip, interpolation = self.config.view_flip, self.clip.preprocess_cfg["interpolation"]
        size = self.clip.image_size
        return kept(
            "selection",
            (indices, views, size, low, high, flip, interpolation),
            (source,),
            lambda: Views(
                source, indices, views, size=size, scale=(low, high), flip=flip, interpolation=interpolation
            ),
        )

    def _say_short(self, drawn: Draw) -> None:
        fewer = {self.names[label]: count for label, count in drawn.short.items() if count}
        none = [self.names[label] for label, count in drawn.short.items() if not count]
        if fewer and self.config.shots is not None:
            listed = console.listed([f"{name} ({count})" for name, count in fewer.items()])
            self.warn(f"fewer than {self.config.shots} images, all of them used: {listed}")
        if none:
            self.warn(f"no image to learn from: {console.listed(none)}")

    def _encoded(
        self,
        source: Any,
        split: str,
        bank: str,
        what: str,
        *,
        clip: CLIP | None = None,
        limit: int | None = None,
        announce: bool = True,
    ) -> FeatureSet:
        """Embeddings from the store, which processes that encode together have first put them into."""
        if self._together:
            self._share(source, split, bank, limit)
        return encoded(
            clip or self.clip,
            source,
            self.config,
            split=split,
            bank=bank,
            limit=limit,
            what=what,
            announce=announce and not self._together,
        )

    def _share(self, source: Any, split: str, bank: str, limit: int | None) -> None:
        with progress("encoding") as told:
            encode_together(
                self.clip,
                source,
                split=split,
                bank=bank,
                **encoding_settings(self.config),
                limit=limit,
                progress=told,
            )
