"""Two scores of an image and a text, weighed: of the embeddings, and of what heads make of them."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.inference.evaluation import class_outcomes, retrieval_estimates
from clipx.models.clip import CLIP
from clipx.models.comparison import check_cosine
from clipx.models.geometry import COSINE, unit_rows
from clipx.objectives.kept_heads import KeptHeads
from clipx.tasks.classification import accuracy
from clipx.tasks.intervals import Estimate

CURVES = ("top1", "image_to_text_recall@1", "text_to_image_recall@1")
"""What ``weight_curve`` measures, as far as the data allows."""


def check_weight(weight: Any) -> None:
    """Check the weight of the embeddings' score.

    Raises:
        ClipxError: it is no number in [0, 1].
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ClipxError(
            f"the weight {weight} does not lie in [0, 1]",
            hint="ensemble.weight=0.5; 1 is the embeddings alone, 0 the heads alone",
        )


def weighted_scores(
    image: Tensor, text: Tensor, width: int, weight: float, scale: Tensor | float = 1.0
) -> Tensor:
    """``scale`` times w cos(z, z') + (1 - w) cos(h, h') of every image with every text.

    Args:
        image: ``[M, D + H]``, each row a unit vector z and a unit vector h.
        text: ``[N, D + H]``, likewise.
        width: D.
        weight: w in [0, 1].
        scale: the inverse temperature.

    Returns:
        ``[M, N]``, in [-scale, scale].

    Source: Fini et al. 2023, "Improved baselines for vision-language pre-training"; their evaluation code.
    """
    (z, h), (z_text, h_text) = (rows.tensor_split([width], dim=-1) for rows in (image, text))
    return scale * weight * z @ z_text.T + scale * (1 - weight) * h @ h_text.T


def concatenated(rows: Tensor, width: int, weight: float) -> Tensor:
    """Unit vectors ``[N, D + H]``, sqrt(w) z and sqrt(1 - w) h, whose products are the ``weighted_scores``.

    Args:
        rows: ``[N, D + H]``, as ``weighted_scores`` takes them.
        width: D.
        weight: w in [0, 1].
    """
    z, h = rows.tensor_split([width], dim=-1)
    return torch.cat([math.sqrt(weight) * z, math.sqrt(1 - weight) * h], dim=-1)


class ScoreEnsemble(nn.Module):
    """Compares by the weighted sum of two cosines: a ``Comparison`` of clipx.models.

    A row ``[D + H]`` is the unit embedding z and behind it h, the unit vector that a head makes of what the
    tower gives before it becomes z. The weight acts as rows are compared, so that one encoding serves all
    weights. The logit scale is the CLIP's own: at weight 1 scores are those of the model without heads. The
    heads' own inverse temperature, which would change their share, takes no part.

    Args:
        image_head: ``[B, D] -> [B, H]``.
        text_head: likewise.
        width: D.
        weight: w of z in [0, 1]; h has 1 - w.

    Raises:
        ClipxError: a weight out of its range.
    """

    kind = "score-ensemble"
    one_vector = True

    def __init__(self, image_head: nn.Module, text_head: nn.Module, width: int, weight: float) -> None:
        super().__init__()
        check_weight(weight)
        self.image_head, self.text_head = image_head, text_head
        self.width, self.weight = width, float(weight)
        self.spec: dict[str, Any] = {"kind": self.kind, "weight": self.weight}

    def at(self, weight: float) -> Self:
        """The same heads at another weight.

        Raises:
            ClipxError: a weight out of its range.
        """
        return type(self)(self.image_head, self.text_head, self.width, weight)

    def image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """What an open_clip model makes of normalised images ``[B, 3, H, W]``: ``[B, D]``."""
        return COSINE.image_features(model, images)

    def text_features(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What an open_clip model makes of token ids ``[B, L]``: ``[B, D]``."""
        return COSINE.text_features(model, tokens)

    def image_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, D + H]`` of an image tower's vectors ``[B, D]``, in float32 or better."""
        return _rows(features, self.image_head)

    def text_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, D + H]`` of a text tower's vectors ``[B, D]``, in float32 or better."""
        return _rows(features, self.text_head)

    def check(self, image: Tensor, text: Tensor) -> None:
        """Check that rows ``[M, D + H]`` and ``[N, D + H]`` can be compared.

        Raises:
            ClipxError: they have different widths.
        """
        COSINE.check(image, text)

    def image_to_text(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the ``weighted_scores`` ``[M, N]``."""
        return weighted_scores(image, text, self.width, self.weight, scale)

    def text_to_image(self, text: Tensor, image: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """The same ``[N, M]``, a row a text."""
        return self.image_to_text(text, image, scale)  # both cosines are symmetric

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """The same ``[B]`` of each image ``[B, D + H]`` and the text of the same row."""
        return scale * (self.pooled_images(image) * self.pooled_images(text)).sum(-1)

    def mean_of_texts(self, rows: Tensor) -> Tensor:
        """The mean ``[C, D + H]`` of rows ``[C, T, D + H]``: of z, and of h, each at length 1 again."""
        z, h = rows.mean(-2).tensor_split([self.width], dim=-1)
        return torch.cat([functional.normalize(z, dim=-1), functional.normalize(h, dim=-1)], dim=-1)

    def pooled_images(self, rows: Tensor) -> Tensor:
        """Unit vectors ``[N, D + H]``, see ``concatenated``: images too are compared by both cosines."""
        return concatenated(rows, self.width, self.weight)

    def clamp(self) -> None:
        """Nothing has bounds."""


def _rows(features: Tensor, head: nn.Module) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(wide.device.type, enabled=False):  # as in training
        return torch.cat([unit_rows(wide), unit_rows(head(wide))], dim=-1)


def ensemble(clip: CLIP, heads: KeptHeads, weight: float) -> CLIP:
    """A model that compares by a ``ScoreEnsemble``; it shares its towers with ``clip``, which stays as it is.

    Args:
        clip: compares by the cosine.
        heads: of its training; moved to its device.
        weight: of the embeddings' score, in [0, 1].

    Raises:
        ClipxError: another comparison, heads for embeddings of another width, or a weight out of its range.
    """
    check_cosine(clip.comparison, "a score ensemble", "a model that compares by the cosine")
    width = int(clip.model_cfg["embed_dim"])
    if heads.widths[0] != width:
        raise ClipxError(
            f"these heads take {heads.widths[0]} numbers, the embeddings of {clip.name} have {width}",
            hint="the heads of the run that trained this model",
        )
    return _compared_by(clip, ScoreEnsemble(heads.image, heads.text, width, weight))


def weight_curve(
    clip: CLIP,
    weights: Sequence[float],
    features: FeatureSet,
    *,
    classifier: Tensor | None = None,
    retrieve: bool = False,
) -> dict[str, list[float]]:
    """What an ensemble gives at other weights, from one encoding.

    Args:
        clip: as ``ensemble`` made it.
        weights: each in [0, 1].
        features: rows of images, and of texts where ``retrieve``.
        classifier: rows ``[C, D + H]`` of classes, for accuracy; None for none.
        retrieve: measure retrieval both ways.

    Returns:
        Of ``CURVES`` what is measured, in [0, 1], a value a weight.

    Raises:
        ClipxError: a weight out of its range.
    """
    found: dict[str, list[float]] = {}
    assert isinstance(clip.comparison, ScoreEnsemble)
    for weight in weights:
        other = _compared_by(clip, clip.comparison.at(weight))
        estimates: dict[str, Estimate] = {}
        if classifier is not None:
            estimates |= accuracy(class_outcomes(other, features.image, features.labels, classifier))
        if retrieve:
            assert features.text is not None
            estimates |= retrieval_estimates(other, features.image, features.text, features.pairs)
        for name in CURVES:
            if name in estimates:
                found.setdefault(name, []).append(estimates[name].value)
    return found


def _compared_by(clip: CLIP, comparison: nn.Module) -> CLIP:
    """A model of the very towers of another: a copy would cost their memory again."""
    model = copy.copy(clip.model)
    model._modules = {**clip.model._modules, "comparison": comparison}
    other = CLIP(model, clip.tokenizer, clip.model_cfg, clip.preprocess_cfg, clip.name, clip.own_cfg)
    return other.to(clip.device).train(clip.training)
