"""What every adapter is: scikit-learn's habit, on features of a frozen CLIP."""

import inspect
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

NEEDS = ("features", "pre_projection", "text_tower", "images")
"""What ``fit`` is given: unit rows; rows before the projection; a CLIP besides; a CLIP and its images."""


@runtime_checkable
class Adapter(Protocol):
    """Few labelled features and a zero-shot classifier, made into a better classifier.

    The constructor takes plain hyperparameters, checks them and keeps each under its own name. Whatever
    ``fit`` learns ends in ``_`` and is a tensor, a dict of tensors or a plain value, so that ``saving`` can
    store any adapter.
    Hyperparameters are searched on ``validation`` alone; without one the given values are used.
    """

    needs: str

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Learn from features ``[N, D]`` of unit rows, labels int64 ``[N]``, and a classifier ``[C, D]``.

        ``groups`` int64 ``[N]`` names the image of each row where an image has several views.
        """
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of features ``[M, D]``."""
        ...


@runtime_checkable
class Transferable(Protocol):
    """An adapter that has an answer for classes it saw no shot of."""

    def for_classes(self, text_classifier: Tensor) -> Adapter:
        """The fitted adapter for other classes, known by their text embeddings ``[C', D]`` alone."""
        ...


@runtime_checkable
class RunsText(Protocol):
    """An adapter that runs the text tower (``needs = "text_tower"``); image features are cached.

    Its ``fit`` names what it uses of: ``clip``, ``class_names``, ``templates``, ``seed``. Its ``for_classes``
    may name ``clip``, ``class_names`` and ``templates`` beside the classifier.
    """

    def attach(self, clip: Any) -> None:
        """Take the model that it was fitted with: called before ``logits`` and after loading."""
        ...


@runtime_checkable
class TrainsTowers(Protocol):
    """An adapter that trains the towers (``needs = "images"``).

    Its ``fit`` names, beside what ``RunsText`` may: ``images``, the shots as ``data.shots.ShotImages``, and
    ``progress``, which it tells ``("step", done, total)``. It trains a copy of ``clip`` and keeps what it
    changed in attributes that end in ``_``.
    """

    def adapted(self, clip: Any) -> Any:
        """The model with what was learnt put in; ``logits`` is then given features of its image tower."""
        ...


def fit(
    adapter: Any,
    features: Tensor,
    labels: Tensor,
    text_classifier: Tensor,
    *,
    logit_scale: float,
    validation: tuple[Tensor, Tensor] | None = None,
    **extras: Any,
) -> Any:
    """Fit an adapter with those of the extras that its ``fit`` has a name for (groups, norms, projection...).

    So a caller offers all it has, and an adapter names what it uses.

    Args:
        adapter: any.
        features, labels, text_classifier, logit_scale, validation: as ``Adapter.fit``.
        extras: what else is known of the shots.

    Returns:
        the adapter.
    """
    known = inspect.signature(adapter.fit).parameters
    used = {name: value for name, value in extras.items() if name in known}
    return adapter.fit(
        features, labels, text_classifier, logit_scale=logit_scale, validation=validation, **used
    )


def arguments(adapter: Any) -> dict[str, Any]:
    """The hyperparameters an adapter was constructed with, by name."""
    return {name: getattr(adapter, name) for name in inspect.signature(type(adapter)).parameters}


def learnt(adapter: Any) -> dict[str, Any]:
    """What ``fit`` left: attributes that end in ``_`` and do not begin with it."""
    return {
        name: value
        for name, value in vars(adapter).items()
        if name.endswith("_") and not name.startswith("_")
    }


def learnt_values(adapter: Any) -> dict[str, Any]:
    """What ``fit`` left that is a number or a word, such as hyperparameters that it searched."""
    return {
        name: value for name, value in learnt(adapter).items() if isinstance(value, bool | int | float | str)
    }


def copy(adapter: Any) -> Any:
    """A new adapter with the same hyperparameters, not fitted."""
    return type(adapter)(**arguments(adapter))
