"""Contrastive batches beyond memory: encoded twice, a few pairs at a time, with the gradient of the whole."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.training.module import TrainingModule

_BatchNorm = nn.modules.batchnorm._BatchNorm


class ChunkEncoder(nn.Module):
    """Embeds a part of a batch; with a gradient cache this is the module that DDP and torch.compile see.

    Args:
        module: the CLIP, and its objectives, whose parameters processes exchange with the rest.
    """

    def __init__(self, module: TrainingModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What ``TrainingModule.embed`` gives, float32 ``[b, D]``, of every field ``[b, ...]``."""
        return self.module.embed(batch)


def cached_backward(
    module: TrainingModule,
    encoder: nn.Module,
    batch: dict[str, Tensor],
    *,
    size: int,
    seeds: Sequence[int],
    seed: int,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Add the gradient of a whole batch to the parameters with the activations of ``size`` pairs in memory.

    First every chunk is embedded without a graph, then the objectives are computed on the embeddings of the
    whole batch, whose gradients flow into each chunk as it is embedded a second time. Processes exchange
    embeddings in between as ever, and gradients once, with the last chunk.

    Args:
        module: the CLIP and its objectives.
        encoder: its ``ChunkEncoder`` as the accelerator has prepared it.
        batch: of this process, every field ``[B, ...]``, as many in every process.
        size: pairs of a chunk.
        seeds: of torch's generators, one a chunk: dropout is the same both times.
        seed: of what the objectives draw, however the batch is cut.
        accelerator: scales and divides the loss, and keeps processes from exchanging too early.

    Returns:
        what ``module`` returns, without a graph.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        section 3.2.
    """
    fields = module.embedded
    chunks = [
        dict(zip(fields, parts, strict=True))
        for parts in zip(*(batch[field].split(size) for field in fields), strict=True)
    ]
    with torch.no_grad(), _statistics_kept(module):
        found = [_seeded(encoder, chunk, seed) for chunk, seed in zip(chunks, seeds, strict=True)]
    whole = {field: torch.cat([each[field] for each in found]).requires_grad_() for field in fields}
    torch.manual_seed(seed)
    with accelerator.autocast():  # of texts that no field holds
        losses = module.terms(module.encoded(batch, whole))
    # The logit scale, the bias and what the objectives own are not reached through embeddings.
    direct = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses["loss"], [*whole.values(), *direct], allow_unused=True)
    to_fields = [None if each is None else each.split(size) for each in gradients[: len(fields)]]
    for number, (chunk, seed) in enumerate(zip(chunks, seeds, strict=True)):
        last = number == len(chunks) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(encoder):
            again = _seeded(encoder, chunk, seed)
            pairs = [
                (again[field], parts[number])
                for field, parts in zip(fields, to_fields, strict=True)
                if parts is not None
            ]
            if last:
                pairs += zip(direct, gradients[len(fields) :], strict=True)
            # The gradient of this sum of products is the cached one.
            products = torch.stack([(value * cached).sum() for value, cached in pairs if cached is not None])
            if products.requires_grad:  # locked towers have nothing to learn
                accelerator.backward(products.sum())
    return {name: value.detach() for name, value in losses.items()}


def check_pooled(objectives: Mapping[str, nn.Module]) -> None:
    """Check that objectives are functions of the pooled embeddings of a batch.

    Raises:
        ClipxError: naming those that are not.
    """
    others = [name for name, objective in objectives.items() if not getattr(objective, "pooled", False)]
    if others:
        raise ClipxError(
            f"{' + '.join(others)} cannot train with training.gradient_cache: "
            "it asks for more than the pooled embeddings of a batch",
            hint="training.gradient_cache=null",
        )


def trained_batch_norm(module: nn.Module) -> bool:
    """Whether a batch norm of the module takes its statistics from the batch while it trains."""
    mode = module.training
    found = any(isinstance(each, _BatchNorm) and each.training for each in module.train().modules())
    module.train(mode)
    return found


def _seeded(encoder: nn.Module, chunk: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)  # of every device
    return encoder(chunk)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms go on with the statistics of their batch, but do not take them into the running ones."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
