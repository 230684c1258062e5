"""What a probe is: a plain object, built from a card, that is given embeddings and returns a ``Result``.

A probe says what it ``needs``, so that a recipe can fetch exactly that and tell what is missing before any
mathematics; and from which ``bank`` of the feature store it wants its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from clipx.features.encode import FeatureSet
from clipx.models.geometry import COSINE
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS = ("train", "validation", "classes", "texts", "shifts", "outside")
"""What a probe may need beside the split that is measured: two more splits, class names with their vectors,
texts paired with the images, the same classes in other looks, images of none of the classes."""


@dataclass(frozen=True)
class Material:
    """What a probe is given.

    ``measured`` the split that figures are of; ``train`` and ``validation`` the splits that something may be
    learnt from and chosen on; ``names`` of the C classes and ``classifier`` ``[C, F]``, their rows;
    ``text`` ``[T, F]`` rows and ``pairs`` int64 ``[P, 2]`` of (measured image, text) that belong
    together; ``shifts`` by name, with labels of the same classes (-1: none); ``outside`` by name, images of
    none of the classes; ``logit_scale`` of the model; ``score`` its similarity ``[M, N]`` of image rows and
    text rows; ``pooled`` makes unit vectors ``[N, D]`` of image rows, of which a cosine's are such; ``title``
    for figures; ``seed`` of every draw. What a probe does not need may be missing.
    """

    measured: FeatureSet
    train: FeatureSet | None = None
    validation: FeatureSet | None = None
    names: Sequence[str] = ()
    classifier: Tensor | None = None
    text: Tensor | None = None
    pairs: Tensor | None = None
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    outside: Mapping[str, FeatureSet] = field(default_factory=dict)
    logit_scale: float = 1.0
    score: Callable[[Tensor, Tensor], Tensor] = COSINE.image_to_text
    pooled: Callable[[Tensor], Tensor] = COSINE.pooled_images
    title: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Shift:
    """Images of another look, and for every class that they are of the columns it has among the C classes.

    ``restyled``: they are the measured images themselves, in the same order.
    """

    features: FeatureSet
    columns: Sequence[Sequence[int]]
    restyled: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Result:
    """What a probe found: figures with their 95% intervals, what they depend on, tables and drawings by name.

    ``details`` is plain data, for results.json.
    """

    metrics: Mapping[str, Estimate]
    details: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Probe(Protocol):
    """A callable with the names of what it needs and the bank of features that it looks at.

    One that compares rows through ``Material.score`` and ``Material.pooled`` says ``any_comparison = True``;
    any other takes rows to be unit vectors, and goes with models that compare by the cosine.
    """

    needs: tuple[str, ...]
    bank: str

    def __call__(self, material: Material) -> Result: ...
