"""Dropout and stochastic depth in the blocks of a text tower, for as long as a pass takes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.text import causal_tower


def blocks_of(clip: CLIP) -> list[Any]:
    """The blocks of a text tower of open_clip's own.

    Raises:
        ClipxError: it is another.
    """
    tower = causal_tower(clip.model)
    if tower is None:
        raise ClipxError(
            f"{clip.name} has a text tower whose blocks cannot drop anything",
            hint="open_clip's own causal transformer, as in ViT-B-32, can",
        )
    return list(tower.transformer.resblocks)


@contextlib.contextmanager
def dropping(blocks: list[Any], dropout: float, drop_path: float) -> Iterator[None]:
    """Let blocks drop what passes them.

    Dropout is on what enters a block, so that it changes the residual stream too. Stochastic depth leaves out
    the attention or the perceptron of a block, for one text and not for another.

    Args:
        blocks: open_clip's residual attention blocks, batch first.
        dropout: probability of a number to be dropped, in [0, 1).
        drop_path: probability of a branch to be left out, in [0, 1).

    Source: the text tower of Fini et al. 2023 in its strong mode; Huang et al. 2016, "Deep Networks with
        Stochastic Depth".
    """
    with contextlib.ExitStack() as hooks:
        for block in blocks if dropout else ():
            hooks.enter_context(_removed(block.register_forward_pre_hook(_entering(dropout))))
        for block in blocks if drop_path else ():
            for branch in (block.ls_1, block.ls_2):  # through which each branch joins the stream
                hooks.enter_context(_removed(branch.register_forward_hook(_branch(drop_path))))
        yield


def leave_out(rows: Tensor, share: float) -> Tensor:
    """Rows ``[B, ...]`` of which a share is 0 and the others are larger in return.

    Args:
        rows: of any shape, the first axis is that of what is left out.
        share: in [0, 1).
    """
    kept = torch.empty(len(rows), *[1] * (rows.ndim - 1), dtype=rows.dtype, device=rows.device)
    return rows * kept.bernoulli_(1 - share).div_(1 - share)


def _entering(share: float) -> Any:
    return lambda block, inputs: (functional.dropout(inputs[0], share), *inputs[1:])


def _branch(share: float) -> Any:
    return lambda module, inputs, output: leave_out(output, share)


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
