"""Heads that objectives learn beside a CLIP, most for training alone: projectors and predictors."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.training.distributed import sum_across, world


def mlp(
    widths: Sequence[int], *, norm: bool = True, last_norm: bool = False, last_affine: bool = True
) -> nn.Sequential:
    """A multi-layer perceptron ``[B, widths[0]] -> [B, widths[-1]]`` with ReLU between its layers.

    Args:
        widths: of the input, of the hidden layers, of the output; two or more.
        norm: batch norm, over the rows of all processes, before every ReLU.
        last_norm: batch norm after the last layer.
        last_affine: whether that one has a gain and a bias.

    Raises:
        ClipxError: fewer than two widths, or one below 1.

    Source: the projectors of SimCLR, BYOL, SimSiam and Barlow Twins.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ClipxError(f"a head of widths {list(widths)} is none", hint="widths of input, hidden, output")
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), 2):
        last = number == len(widths)
        normed = last_norm if last else norm
        layers.append(nn.Linear(before, after, bias=not normed))  # the norm would take a bias away again
        if normed:
            layers.append(BatchNormAcross(after, affine=not last or last_affine))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class BatchNormAcross(nn.BatchNorm1d):
    """Batch norm of rows ``[B, D]`` whose statistics are those of the rows of all processes, on any device.

    torch's ``SyncBatchNorm`` is for GPUs alone. In one process it is ``nn.BatchNorm1d``.

    Raises:
        ClipxError: while training, on a single row, whose variance is nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        size = world()[1]
        rows = size * len(input)
        if self.training and rows < 2:
            raise ClipxError("batch norm needs 2 rows or more", hint="raise training.batch_size")
        if not self.training or size == 1:
            return super().forward(input)
        mean = sum_across(input.sum(0)) / rows
        centred = input - mean
        variance = sum_across(centred.square().sum(0)) / rows
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * rows / (rows - 1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        normed = centred * torch.rsqrt(variance + self.eps)
        return normed if self.weight is None else torch.addcmul(self.bias, normed, self.weight)


def negative_cosine(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean of minus the cosines of rows ``[B, D]`` with those that they are to predict, in [-1, 1].

    No gradient flows into ``wanted``.

    Source: Chen and He 2021 (SimSiam), equation 1; Grill et al. 2020 (BYOL) have 2 + 2 times this.
    """
    return -functional.cosine_similarity(predicted, wanted.detach(), dim=-1).mean()
