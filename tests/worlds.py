"""What each of several gloo processes computes for the tests of objectives and of exchanges."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from clipx.errors import ClipxError
from clipx.objectives.heads import BatchNormAcross
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.masked_language import NOT_ASKED, told_loss
from clipx.objectives.siglip import SigLIP
from clipx.training.distributed import exchange, foreign_rows, gather_rows, world

ROWS = 3
"""Pairs a process."""

CASES = {
    "infonce FT": lambda: InfoNCE(local_loss=False, gather_with_grad=True),
    "infonce TT": lambda: InfoNCE(local_loss=True, gather_with_grad=True),
    "infonce FF": lambda: InfoNCE(local_loss=False, gather_with_grad=False),
    "infonce FT chunked": lambda: InfoNCE(local_loss=False, label_smoothing=0.1, chunk_size=2),
    "infonce TT chunked": lambda: InfoNCE(local_loss=True, label_smoothing=0.1, chunk_size=2),
    "infonce FF chunked": lambda: InfoNCE(local_loss=False, gather_with_grad=False, chunk_size=2),
    "siglip bidir": lambda: SigLIP("bidir"),
    "siglip shift": lambda: SigLIP("shift"),
    "siglip reduce": lambda: SigLIP("reduce"),
    "siglip gather": lambda: SigLIP("gather"),
    "siglip bidir chunked": lambda: SigLIP("bidir", chunk_size=2),
}


class Towers(nn.Module):
    """Two linear towers, a scale and a bias: all that an objective needs of a CLIP, in float64."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(4, 5, generator=generator, dtype=torch.float64))
        self.text = nn.Parameter(torch.randn(4, 5, generator=generator, dtype=torch.float64))
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        self.objective = objective

    def forward(self, images, texts):
        image = functional.normalize(images @ self.image, dim=-1)
        text = functional.normalize(texts @ self.text, dim=-1)
        encoded = SimpleNamespace(
            image=lambda: image,
            text=lambda: text,
            logit_scale=self.logit_scale.exp(),
            logit_bias=self.logit_bias,
        )
        (loss,) = self.objective(encoded).values()
        return loss


def pairs(size):
    """The whole batch of ``size`` processes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, size * ROWS, 4, generator=generator, dtype=torch.float64)


class Told(nn.Module):
    """A head that tells tokens, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.head = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))

    def forward(self, features, labels):
        return told_loss(features, labels, lambda rows: rows @ self.head)


def told(size):
    """Features and labels of tokens of ``size`` processes; of some many are asked, of the first none."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(size * ROWS, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (size * ROWS, 5), generator=generator)
    asked = torch.rand(size * ROWS, 5, generator=generator) < torch.arange(size * ROWS)[:, None] / size / ROWS
    asked[:ROWS] = False
    return features, labels.where(asked, NOT_ASKED)


def gradients(towers):
    return {name: parameter.grad for name, parameter in towers.named_parameters()}


def run(rank, size, folder):
    """The work of one process; its findings go to ``<folder>/<size>-<rank>.pt``."""
    torch.set_num_threads(1)
    start = Path(folder, f"rendezvous-{size}").absolute().as_uri()
    dist.init_process_group("gloo", init_method=start, rank=rank, world_size=size)
    found = {"world": world(), "unequal": unequal(rank), "exchange": exchanged(rank)}
    own = torch.full((ROWS, 2), float(rank))
    found["gathered"] = gather_rows(own)
    for how in ("bidir", "shift", "reduce", "gather"):
        found[f"foreign {how}"] = [block.clone() for block in foreign_rows(own, how)]
    found["batch norm"] = normed(rank, size)
    images, texts = pairs(size)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    for name, build in CASES.items():
        towers = DistributedDataParallel(Towers(build()))
        loss = towers(images[mine], texts[mine])
        loss.backward()
        dist.all_reduce(mean := loss.detach() / size)
        found[name] = {"loss": mean, **gradients(towers.module)}
    head = DistributedDataParallel(Told())
    loss = head(*(part[mine] for part in told(size)))
    loss.backward()
    dist.all_reduce(mean := loss.detach() / size)
    found["told"] = {"loss": mean, **gradients(head.module)}
    torch.save(found, Path(folder, f"{size}-{rank}.pt"))
    dist.destroy_process_group()


def unequal(rank):
    """The messages of what refuses batches of different size; the processes go on together afterwards."""
    rows = functional.normalize(torch.ones(2 + (rank == 0), 5), dim=-1)
    encoded = SimpleNamespace(image=lambda: rows, text=lambda: rows, logit_scale=10.0, logit_bias=-10.0)
    messages = []
    for objective in (InfoNCE(), *map(SigLIP, ("bidir", "shift", "reduce", "gather"))):
        try:
            objective(encoded)
        except ClipxError as error:
            messages.append(error.message)
    return messages


def normed(rank, size):
    """Rows after a batch norm over all processes, what flows back into them, and what it remembers."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2 * size * ROWS, 5, generator=generator, dtype=torch.float64)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    own, norm = rows[mine].clone().requires_grad_(), BatchNormAcross(5).double()
    after = norm(own)
    after.square().mul(torch.arange(size * ROWS)[mine, None]).mean().backward()
    return {"rows": after.detach(), "gradient": own.grad, "state": norm.state_dict()}


def exchanged(rank):
    """Two tensors of different shape and dtype, one to each side, and the gradients that come back."""
    right = torch.full((2, 3), float(rank), requires_grad=True)
    left = torch.full((4,), 10.0 + rank, dtype=torch.float64, requires_grad=True)
    from_left, from_right = exchange((right, left), (1, -1))
    ((rank + 1) * from_left.sum() + (rank + 100) * from_right.sum()).backward()
    return {"values": (from_left.detach(), from_right.detach()), "gradients": (right.grad, left.grad)}
