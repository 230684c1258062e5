"""Zero-shot: the shots are looked at by nobody; the baseline that every adapter has to beat."""

from typing import Self

from torch import Tensor

from clipx.adapters.checks import check_fitted, check_queries, checked
from clipx.errors import ClipxError


def zero_shot_logits(features: Tensor, text_classifier: Tensor, logit_scale: float) -> Tensor:
    """Scaled cosines ``[M, C]`` of unit rows ``[M, D]`` and ``[C, D]``, as ``CLIP.score`` computes them."""
    return logit_scale * features @ text_classifier.T


class ZeroShot:
    """The zero-shot classifier as an adapter.

    Source: Radford et al. 2021, section 3.1.
    """

    needs = "features"

    text_classifier_: Tensor
    logit_scale_: float

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
        """Keep the classifier; the shots are checked and left alone.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        support = checked(
            features,
            labels,
            text_classifier,
            logit_scale=logit_scale,
            validation=validation,
            groups=groups,
        )
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        return zero_shot_logits(features, self.text_classifier_, self.logit_scale_)

    def for_classes(self, text_classifier: Tensor) -> "ZeroShot":
        """The same over other classes ``[C', D]``."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


def zero_shot_of(text_classifier: Tensor, like: Tensor, logit_scale: float) -> ZeroShot:
    """A fitted ``ZeroShot`` over classes ``[C, D]``, in the dtype and on the device of ``like`` ``[..., D]``.

    Raises:
        ClipxError: rows that are not of unit length, or of another width.
    """
    if not len(text_classifier):
        raise ClipxError("there are no classes")
    adapter = ZeroShot()
    adapter.text_classifier_ = check_queries(text_classifier, like)
    adapter.logit_scale_ = logit_scale
    return adapter
