"""One adapter's card on one data set: fitted on shots, measured on the test split, beside zero-shot."""

import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from clipx import console
from clipx.adapters import protocol, saving
from clipx.adapters.zero_shot import zero_shot_of
from clipx.config import build
from clipx.errors import ClipxError, did_you_mean
from clipx.features.encode import FeatureSet
from clipx.features.projection import image_projection
from clipx.inference.adapted import FOLDER, Adapted, describe, rows_of
from clipx.models.clip import CLIP
from clipx.models.comparison import check_cosine
from clipx.recipes.few_shot_data import FewShotData, Shots
from clipx.recipes.frozen import class_vectors, progress, templates_of
from clipx.recipes.parts import parameters_of, target_of
from clipx.run import Run
from clipx.runs import find_run
from clipx.tasks.classification import Outcomes


class Bench:
    """Fits the card's adapter and measures what it gives, for whichever classes of the data.

    Args:
        clip: the model.
        config: of ``clipx adapt``.
        run: the run, beside which the one lies that ``hyperparameters`` names.

    Attributes:
        data: what is learnt from and measured on.
        templates: the prompts of the classes.
        classifier: unit rows ``[C, D]``, zero-shot, on the model's device.
        scale: what logits are multiplied by.
        seconds: seed -> what a fit and an answer took.

    Raises:
        ClipxError: the adapter does not go with the model, its settings are wrong, ``hyperparameters`` names
            no run of the method, or what ``FewShotData`` raises.
    """

    def __init__(self, clip: CLIP, config: DictConfig, run: Run) -> None:
        self.clip, self.config, self.run = clip, config, run
        works = "clipx zeroshot, and clipx probe --method linear-probe-full, take any comparison"
        check_cosine(clip.comparison, f"the adapter {config.method}", works)
        self.needs = _needs(config.adapter)
        if self.needs == "pre_projection":
            image_projection(clip)  # says at once where there is none
        self.data = FewShotData(clip, self.needs, config, run)
        self.templates = templates_of(config, self.data.source)
        self.classifier = class_vectors(
            clip, self.data.names, self.templates, batch_size=config.batch_size, precision=config.precision
        )
        self.scale = float(clip.logit_scale.detach())
        self.seconds: dict[int, dict[str, float]] = {}
        self._given = _found_elsewhere(config, run) if run.writes else {}
        _build(config.adapter, 0, self._given)  # wrong hyperparameters are told before anything is encoded

    def fit(self, seed: int, classes: Sequence[int], test: FeatureSet) -> tuple[Adapted, Shots]:
        """The card's adapter, fitted on the shots of one seed for these classes.

        Args:
            seed: of the draw and of the adapter.
            classes: places in the names of the data.
            test: what is measured on; it is looked at only where ``leaky_parity`` chooses on it.

        Raises:
            ClipxError: the towers embed into different spaces, or what drawing and fitting raise.
        """
        shots = self.data.shots(seed, classes)
        device = self.clip.device
        validation = self.data.validation(seed, classes, test)
        if validation is not None:
            validation = validation[0].to(device), validation[1].to(device)
        self._check_size(shots)
        names = [self.data.names[label] for label in classes]
        extras = self._extras(shots, seed, classes)
        adapter = _build(self.config.adapter, seed, self._given)
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as said, progress(f"training seed {seed}") as told:
            warnings.simplefilter("always")
            protocol.fit(
                adapter,
                rows_of(shots.features, self.needs).to(device),
                shots.labels.to(device),
                self.classifier[list(classes)],
                logit_scale=self.scale,
                validation=validation,
                class_names=names,
                progress=told,
                **extras,
            )
        taken = time.monotonic() - began
        self.seconds[seed] = {"fit_seconds": taken}
        if self.needs in ("text_tower", "images"):
            seconds = console.duration(taken)
            console.info(f"trained on {len(shots.ids):,} images of seed {seed} in {seconds}")
        for each in said:
            if issubclass(each.category, UserWarning):
                self.data.warn(_named(str(each.message), names))
        return Adapted(self.clip, adapter, names, self.templates), shots

    def zero_shot(self, classes: Sequence[int]) -> Adapted:
        """The baseline over these classes."""
        vectors = self.classifier[list(classes)]
        names = [self.data.names[label] for label in classes]
        return Adapted(self.clip, zero_shot_of(vectors, vectors, self.scale), names, self.templates)

    def measured(
        self, adapted: Adapted, classes: Sequence[int], test: FeatureSet, seed: int | None = None
    ) -> Outcomes:
        """What becomes of the test images of these classes, the others left out.

        With a seed, what an answer takes is written down beside what its fit took.

        Raises:
            ClipxError: there is no such image.
        """
        if adapted.tower is not self.clip:
            test = self.data.test(adapted.tower)
        labels = self.data.labels_among(test, classes)
        kept = labels >= 0
        if not kept.any():
            raise ClipxError(f"the {self.config.split} split has no image of the classes that are asked for")
        began = time.monotonic()
        found = adapted.outcomes(adapted.rows(test)[kept], labels[kept])
        if seed is not None:
            self.seconds[seed]["seconds_per_image"] = (time.monotonic() - began) / int(kept.sum())
        return found

    def _extras(self, shots: Shots, seed: int, classes: Sequence[int]) -> dict[str, Any]:
        """What an adapter may ask for beside features and labels."""
        device, norms = self.clip.device, shots.features.norms
        extras: dict[str, Any] = {
            "groups": shots.groups.to(device),
            "norms": None if norms is None else norms.to(device),
            "templates": self.templates,
            "seed": seed,
        }
        if self.needs == "pre_projection":
            extras["projection"] = image_projection(self.clip)
        if self.needs in ("text_tower", "images"):
            extras["clip"] = self.clip
        if self.needs == "images":
            extras["images"] = self.data.images(shots, seed, classes)
        return extras

    def _check_size(self, shots: Shots) -> None:
        width = self.classifier.shape[1]
        if shots.features.image.shape[1] != width:
            raise ClipxError(
                f"image features have {shots.features.image.shape[1]} dimensions, class vectors {width}",
                hint="is this model's image tower the one its text tower was trained with?",
            )


def _needs(node: DictConfig) -> str:
    needs = getattr(target_of(node), "needs", "features")
    if needs not in protocol.NEEDS:
        raise ClipxError(f"this adapter needs {needs!r}", hint=did_you_mean(str(needs), protocol.NEEDS))
    return str(needs)


def _build(node: DictConfig, seed: int, given: dict[str, Any]) -> Any:
    own = {"seed": seed} if "seed" in parameters_of(node) else {}
    return build(node, **{**given, **own})


def _found_elsewhere(config: DictConfig, run: Run) -> dict[str, Any]:
    """Hyperparameters that another run of the method found on validation, the median over seeds."""
    if config.hyperparameters is None:
        return {}
    assert run.directory is not None
    root = run.directory.parents[2]
    folder = find_run(root, str(config.hyperparameters), command="adapt", holding=FOLDER) / FOLDER
    described = describe(folder)
    if described["method"] != config.method:
        raise ClipxError(
            f"{config.hyperparameters} is a run of {described['method']}, not of {config.method}",
            hint=f"a run of clipx adapt --method {config.method}",
        )
    found: dict[str, list[Any]] = {}
    for file in described["files"]:
        adapter = saving.load(folder / file)
        known = protocol.arguments(adapter)
        for name, value in protocol.learnt_values(adapter).items():
            if name.removesuffix("_") in known:
                found.setdefault(name.removesuffix("_"), []).append(value)
    if not found:
        raise ClipxError(f"{config.method} searches nothing that could be transferred", hint="val=none")
    return {
        name: statistics.median(values) if isinstance(values[0], float) else values[0]
        for name, values in found.items()
    }


def _named(message: str, names: Sequence[str]) -> str:
    """A warning with the class's name where it gives its number: ``class 3 has no shot``."""
    words = message.split()
    for place, word in enumerate(words[:-1]):
        number = words[place + 1].rstrip(":,")
        if word == "class" and number.isdigit() and int(number) < len(names):
            words[place + 1] = words[place + 1].replace(number, repr(names[int(number)]))
            break
    return " ".join(words)
