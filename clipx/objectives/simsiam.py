"""Views that predict one another: SimSiam and BYOL, within images or across images and texts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.errors import ClipxError, did_you_mean
from clipx.models.clip import CLIP
from clipx.objectives.heads import mlp, negative_cosine
from clipx.training.encoded import Encoded
from clipx.training.momentum import Momentum


def predicted_views(
    predicted: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Mean of minus the cosines with which each view of a pair predicts the other, in [-1, 1].

    Args:
        predicted: of every pair what is predicted from its first and from its second view, ``[B, D]`` each.
        wanted: of every pair the first and the second view themselves, which get no gradient.

    Source: Chen and He 2021 (SimSiam), equation 2; for one pair it is that of DeCLIP, and 2 + 2 times it is
        the loss of SiamLIP.
    """
    losses = [
        negative_cosine(guess, view)
        for (from_first, from_second), (first, second) in zip(predicted, wanted, strict=True)
        for guess, view in ((from_first, second), (from_second, first))
    ]
    return torch.stack(losses).mean()


class SimSiam(nn.Module):
    """Each view of a pair predicts the other, and no gradient flows into what is predicted.

    Images and texts have a projector and a predictor of their own. They take what a tower gives before it
    becomes a unit row. The standard deviation of the unit projections is noted as ``siam_std``: near
    1 / sqrt(width) they are spread out, at 0 they have collapsed.

    Args:
        clip: whose towers are trained.
        pairs: of fields, of images or texts.
        hidden: width of the projector's hidden layers.
        width: of the projections.
        layers: of the projector, 1 or more.
        predictor: width of the predictor's hidden layer.
        last_norm: batch norm after the projector's last layer.
        last_affine: whether that has a gain and a bias.

    Raises:
        ClipxError: no pairs, other fields, or a width or number of layers below 1.

    Source: Chen and He 2021; within images Li et al. 2022 (DeCLIP), section 3.2.1; across Fini et al. 2023
        ("Improved baselines for vision-language pre-training"), SiamLIP.
    """

    pooled = True

    def __init__(
        self,
        clip: CLIP,
        pairs: Sequence[Sequence[str]] = (("image_view_1", "image_view_2"),),
        hidden: int = 1024,
        width: int = 1024,
        layers: int = 3,
        predictor: int = 512,
        last_norm: bool = True,
        last_affine: bool = True,
    ) -> None:
        super().__init__()
        self.pairs = [tuple(pair) for pair in pairs]
        check_pairs(self.pairs)
        if layers < 1:
            raise ClipxError(f"layers is {layers}, must be 1 or more")
        self.needs = self.unnormalised = tuple(dict.fromkeys(field for pair in self.pairs for field in pair))
        widths = [int(clip.model_cfg["embed_dim"]), *[hidden] * (layers - 1), width]
        kinds = sorted({kind_of(field) for field in self.needs})
        self.projectors = nn.ModuleDict(
            {kind: mlp(widths, last_norm=last_norm, last_affine=last_affine) for kind in kinds}
        )
        self.predictors = nn.ModuleDict({kind: mlp([width, predictor, width]) for kind in kinds})

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"siam": loss}`` of an encoded batch, in [-1, 1]."""
        views = {field: self.projectors[kind_of(field)](encoded.features(field)) for field in self.needs}
        guesses = {field: self.predictors[kind_of(field)](view) for field, view in views.items()}
        wanted = self.targets(encoded, views)
        encoded.note("siam_std", torch.stack([spread(view) for view in views.values()]).mean())
        loss = predicted_views(
            [(guesses[first], guesses[second]) for first, second in self.pairs],
            [(wanted[first], wanted[second]) for first, second in self.pairs],
        )
        return {"siam": loss}

    def targets(self, encoded: Encoded, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is to be predicted, ``[B, width]`` by field: the views themselves."""
        return views


class BYOL(SimSiam):
    """SimSiam whose targets are the views as slow copies of towers and projectors see them.

    It encodes fields of a batch a second time, so a gradient cache has no use for it.

    Args:
        momentum: the share of the copies that an optimizer step leaves, in [0, 1].
        clip, pairs, hidden, width, layers, predictor, last_norm, last_affine: as ``SimSiam`` takes them.

    Raises:
        ClipxError: momentum outside its range, or what ``SimSiam`` raises.

    Source: Grill et al. 2020 (BYOL); across images and texts Fini et al. 2023, BYOLIP.
    """

    pooled = False

    def __init__(
        self,
        clip: CLIP,
        pairs: Sequence[Sequence[str]] = (("image_view_1", "image_view_2"),),
        momentum: float = 0.99,
        hidden: int = 1024,
        width: int = 1024,
        layers: int = 3,
        predictor: int = 512,
        last_norm: bool = True,
        last_affine: bool = True,
    ) -> None:
        super().__init__(clip, pairs, hidden, width, layers, predictor, last_norm, last_affine)
        if not 0 <= momentum <= 1:
            raise ClipxError(f"momentum is {momentum}, must lie in [0, 1]", hint="0.99")
        self.momentum = momentum
        self.slow_clip = Momentum(clip)
        # Batch norm of a slow copy on statistics of the fast one would be off by what lies between them.
        self.slow_projectors = Momentum(self.projectors, batch_statistics=True)

    @torch.no_grad()
    def targets(self, encoded: Encoded, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is to be predicted, ``[B, width]`` by field: the views as the slow copies see them."""
        with encoded.precision():
            slow = Encoded(self.slow_clip.module, encoded.batch)  # type: ignore[arg-type]
            features = {field: slow.features(field) for field in self.needs}
        projectors: nn.ModuleDict = self.slow_projectors.module  # type: ignore[assignment]
        return {field: projectors[kind_of(field)](rows) for field, rows in features.items()}

    def after_step(self, clip: CLIP, progress: float) -> None:
        """Let the copies follow."""
        self.slow_clip.follow(clip, self.momentum)
        self.slow_projectors.follow(self.projectors, self.momentum)


@torch.no_grad()
def spread(views: Tensor) -> Tensor:
    """Standard deviation of the coordinates of unit rows of ``[B, D]``, their mean: in [0, 1 / sqrt(D)].

    Source: Chen and He 2021, section 4.1.
    """
    return functional.normalize(views, dim=-1).std(0, correction=0).mean()


def check_pairs(pairs: Sequence[Sequence[str]]) -> None:
    """Check that names are those of pairs of fields of images or texts, one pair or more.

    Raises:
        ClipxError: naming what is none.
    """
    known = (*IMAGE_FIELDS, *TOKEN_FIELDS)
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ClipxError(
            f"pairs={[list(pair) for pair in pairs]} are no pairs of fields",
            hint="pairs=[[image_view_1,image_view_2]]",
        )
    for name in (field for pair in pairs for field in pair):
        if name not in known:
            raise ClipxError(f"pairs: there is no such field {name!r}", hint=did_you_mean(name, known))


def kind_of(field: str) -> str:
    return "image" if field in IMAGE_FIELDS else "text"
