"""Geodesic mixup: embeddings between an image and a caption on the sphere, as negatives and as soft pairs."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.objectives.infonce import check_candidates, info_nce
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

SIDES = ("image", "text", "both")
"""What ``UnimodalMix`` mixes."""

_SAME = 1e-6
"""Rows whose cosine is within this of 1 or -1 are taken for one direction or opposite ones."""


def geodesic(one: Tensor, other: Tensor, share: Tensor | float) -> Tensor:
    """The point on the great circle from ``other`` to ``one`` that is ``share`` of the way there.

    Args:
        one, other: ``[..., D]`` unit rows. Where they are one direction, or opposite ones, between which no
            circle is the shortest, the normalised straight line takes its place.
        share: 1 gives ``one``, 0 ``other``; broadcast to ``[...]``.

    Returns:
        ``[..., D]`` unit rows.

    Source: Shoemake 1985; Oh et al. 2023 (Geodesic Multi-Modal Mixup), equation 4.
    """
    cosine = (one * other).sum(-1, keepdim=True)
    share = torch.as_tensor(share, dtype=one.dtype, device=one.device).unsqueeze(-1)
    straight = functional.normalize(share * one + (1 - share) * other, dim=-1)
    flat = cosine.abs() > 1 - _SAME
    # Where nothing is taken from it, the arc must still be finite, or its gradient would be NaN.
    angle = torch.arccos(cosine.masked_fill(flat, 0.0))
    arc = (torch.sin(share * angle) * one + torch.sin((1 - share) * angle) * other) / torch.sin(angle)
    return torch.where(flat, straight, arc)


def cross_modal_mix(
    image: Tensor,
    text: Tensor,
    share: Tensor | float,
    logit_scale: Tensor | float,
    *,
    all_mixed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """m2-Mix: a pair against every other image mixed with its own caption, which lies between the clouds.

    Args:
        image: ``[B, D]`` unit rows.
        text: ``[B, D]`` unit rows, row i the caption of image i.
        share: of the image in a mix, in [0, 1].
        logit_scale: the inverse temperature, > 0.
        all_mixed: ``[M, D]`` mixes of all pairs, those of these rows from ``offset``; None: of these rows.
        offset: of this process's rows among the mixes.

    Returns:
        a scalar, 0 or more: the sum of the cross-entropies of images and of texts.

    Source: Oh et al. 2023, equation 5.
    """
    mixed = geodesic(image, text, share) if all_mixed is None else all_mixed
    own = torch.arange(len(image), device=image.device)
    matches = (image * text).sum(-1)
    loss = image.new_zeros(())
    for rows in (image, text):
        logits = (rows @ mixed.T).index_put((own, own + offset), matches)
        loss = loss + functional.cross_entropy(logit_scale * logits, own + offset)
    return loss


def unimodal_mix(
    image: Tensor,
    text: Tensor,
    share: Tensor | float,
    logit_scale: Tensor | float,
    *,
    side: str,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """V-Mix, L-Mix, VL-Mix: every image (text, or both) mixed with that at the same place from the other end.

    A mix of two images belongs to both captions, in proportion to the shares. Mixes of both sides have the
    same shares, and belong wholly to the mix of their own captions and to that of the reverse pair, which is
    the same in other shares: these targets sum to 2, as published.

    Args:
        image, text: ``[B, D]`` unit rows, row i the caption of image i.
        share: of a row in its mix, in [0, 1].
        logit_scale: the inverse temperature, > 0.
        side: image (V), text (L) or both (VL).
        all_image, all_text: ``[M, D]`` unit rows of all pairs, these from ``offset``; None: these.
        offset: of this process's rows among all.

    Returns:
        a scalar, 0 or more: the mean of both directions.

    Raises:
        ClipxError: no such side.

    Source: Oh et al. 2023, equations 7 to 9; targets of VL as in the published code.
    """
    if side not in SIDES:
        raise ClipxError(f"unknown side {side!r}", hint=did_you_mean(side, SIDES))
    all_image = image if all_image is None else all_image
    all_text = text if all_text is None else all_text
    if side != "text":
        all_image = geodesic(all_image, all_image.flip(0), share)
    if side != "image":
        all_text = geodesic(all_text, all_text.flip(0), share)
    rows, last = torch.arange(len(image), device=image.device), len(all_image) - 1
    own = image.new_zeros(len(image), len(all_image)).index_put((rows, rows + offset), image.new_ones(()))
    reverse = torch.zeros_like(own).index_put((rows, last - rows - offset), image.new_ones(()))
    targets = own + reverse if side == "both" else share * own + (1 - share) * reverse
    mine = slice(offset, offset + len(image))
    return info_nce(
        all_image[mine],
        all_text[mine],
        logit_scale,
        targets=targets,
        all_image=all_image,
        all_text=all_text,
        offset=offset,
    )


class CrossModalMix(nn.Module):
    """m2-Mix over the pairs of all processes; goes beside ``infonce`` with a model of fixed temperature.

    Args:
        beta: of the Beta distribution of a batch's share, above 0.
        temperature: of these logits, above 0; None for the model's. Below the model's it warns.
        epochs: the weight is 1, 1/2, 1/3, ... in as many equal parts of the training; None: always 1.

    Raises:
        ClipxError: an argument outside its range.

    Source: Oh et al. 2023, "Geodesic Multi-Modal Mixup for Robust Fine-Tuning".
    """

    needs = ("image", "text")
    pooled = True

    def __init__(
        self, beta: float = 0.5, temperature: float | None = 0.07, epochs: float | None = None
    ) -> None:
        super().__init__()
        _check_above_0(beta=beta, temperature=temperature, epochs=epochs)
        self.beta = beta
        self.temperature = temperature
        self.epochs = epochs
        self._compared = temperature is None

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"m2_mix": loss}`` of an encoded batch, with its weight of now.

        Raises:
            ClipxError: processes hold batches of different size, or there are fewer than two pairs.
        """
        image, text = encoded.image(), encoded.text()
        check_equal_rows(image)
        share = drawn_share(self.beta, image.device)
        all_mixed = gather_rows(geodesic(image, text, share))
        check_candidates(image, all_mixed)
        scale = encoded.logit_scale if self.temperature is None else 1 / self.temperature
        if not self._compared:  # once: looking at a value holds an accelerator up
            self._compared = True
            models = float(torch.as_tensor(encoded.logit_scale).detach())
            if scale > 1.001 * models:
                warnings.warn(
                    f"the temperature of mixes, {self.temperature}, is below the model's, {1 / models:.4g}: "
                    "negatives that are hard already become harder",
                    stacklevel=2,
                )
        offset = world()[0] * len(image)
        loss = cross_modal_mix(image, text, share, scale, all_mixed=all_mixed, offset=offset)
        return {"m2_mix": inverse_epoch(encoded.progress, self.epochs) * loss}


class UnimodalMix(nn.Module):
    """V-, L- or VL-Mix over the pairs of all processes; with ``CrossModalMix`` it makes m3-Mix.

    Args:
        side: what is mixed: image (V), text (L) or both (VL).
        beta: of the Beta distribution of a batch's share, above 0.
        epochs: as in ``CrossModalMix``.

    Raises:
        ClipxError: no such side, or an argument outside its range.

    Source: Oh et al. 2023, section 4.3.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(self, side: str, beta: float = 0.5, epochs: float | None = None) -> None:
        super().__init__()
        if side not in SIDES:
            raise ClipxError(f"unknown side {side!r}", hint=did_you_mean(side, SIDES))
        _check_above_0(beta=beta, epochs=epochs)
        self.side = side
        self.beta = beta
        self.epochs = epochs

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"v_mix" or "l_mix" or "vl_mix": loss}`` of an encoded batch, with its weight of now.

        Raises:
            ClipxError: processes hold batches of different size, or there are fewer than two pairs.
        """
        image, text = encoded.image(), encoded.text()
        check_equal_rows(image)
        loss = unimodal_mix(
            image,
            text,
            drawn_share(self.beta, image.device),
            encoded.logit_scale,
            side=self.side,
            all_image=gather_rows(image),
            all_text=gather_rows(text),
            offset=world()[0] * len(image),
        )
        name = {"image": "v_mix", "text": "l_mix", "both": "vl_mix"}[self.side]
        return {name: inverse_epoch(encoded.progress, self.epochs) * loss}


def drawn_share(beta: float, device: torch.device) -> Tensor:
    """A scalar in [0, 1] of the Beta distribution of ``beta`` twice, one for all processes; collective."""
    # On the CPU and in float64: the same on any device, and exact near 0 and 1, where it mostly lies.
    both = torch.tensor(beta, dtype=torch.float64)
    drawn = torch.distributions.Beta(both, both).sample()
    return gather_rows(drawn.float().to(device)[None])[0]


def inverse_epoch(progress: Tensor | float, epochs: float | None) -> Tensor | float:
    """1, 1/2, 1/3, ... in the first, second, third, ... of ``epochs`` epochs; 1 for None.

    Args:
        progress: share of the training that is done, in [0, 1).
    """
    if epochs is None:
        return 1.0
    # A step that begins an epoch must not fall short of it by rounding.
    return 1 / (1 + torch.floor(torch.as_tensor(progress) * epochs + 1e-4))


def _check_above_0(**arguments: float | None) -> None:
    for name, value in arguments.items():
        if value is not None and value <= 0:
            raise ClipxError(f"{name} is {value}, must be above 0")
