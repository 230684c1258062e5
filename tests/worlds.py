"""What each of several gloo processes computes for the tests of objectives and of exchanges."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from clipx.errors import ClipxError
from clipx.models.geometry import COSINE, Geometry
from clipx.models.loading import load
from clipx.models.mixture import Mixture
from clipx.objectives.alignment import Alignment
from clipx.objectives.attentive_mask import AttentiveMask
from clipx.objectives.barlow import Barlow
from clipx.objectives.cloob import CLOOB
from clipx.objectives.entailment import Entailment
from clipx.objectives.geodesic_mixup import CrossModalMix, UnimodalMix
from clipx.objectives.heads import BatchNormAcross
from clipx.objectives.imsep import IMSep
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.masked_language import NOT_ASKED, told_loss
from clipx.objectives.multi_view import MultiView
from clipx.objectives.neighbours import NearestNeighbours
from clipx.objectives.projected_views import ProjectedViews
from clipx.objectives.rank_consistency import RankConsistency
from clipx.objectives.second_view import SecondView
from clipx.objectives.siglip import SigLIP
from clipx.objectives.simsiam import SimSiam
from clipx.objectives.sinkhorn_swap import SinkhornSwap
from clipx.objectives.soft_infonce import SoftInfoNCE
from clipx.objectives.token_match import TokenMatch
from clipx.objectives.uniformity import CrossUniformity, Uniformity
from clipx.training.distributed import exchange, foreign_rows, gather_rows, world
from clipx.training.encoded import Encoded

ROWS = 3
"""Pairs a process."""


class Compared(nn.Module):
    """An objective of a model that compares otherwise than by the cosine; rows are those of the towers, over
    and over.
    """

    def __init__(self, objective, build, *arguments, widen=(1, 1), **options):
        super().__init__()
        torch.manual_seed(6)
        self.objective, self.comparison, self.widen = objective, build(*arguments, **options).double(), widen

    def forward(self, encoded):
        image, text = encoded.image().repeat(1, self.widen[0]), encoded.text().repeat(1, self.widen[1])
        own = {"comparison": self.comparison, "image": lambda: image, "text": lambda: text}
        return self.objective(SimpleNamespace(**{**vars(encoded), **own}))


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
    "alignment": lambda: Alignment(exponent=1.5),
    "alignment, cosine": lambda: Alignment(form="cosine", detach="text"),
    "uniformity": lambda: Uniformity(),
    "cross_uniformity": lambda: CrossUniformity(t=3.0),
    "multi-view": lambda: MultiView(label_smoothing=0.1),
    "simsiam": lambda: seeded(SimSiam, hidden=6, width=4, predictor=3),
    "simsiam across": lambda: seeded(
        SimSiam, [["image", "text"], ["image", "text_view_1"]], 6, 4, 2, 3, last_affine=False
    ),
    "barlow": lambda: seeded(Barlow, [["image", "text"], ["image_view_1", "text_view_2"]], hidden=6, width=4),
    "projected": lambda: seeded(ProjectedViews, hidden=6, width=4),
    "swap": lambda: Together(
        seeded(ProjectedViews, hidden=6, width=4, label_smoothing=0.0), SinkhornSwap(iterations=2)
    ),
    "neighbours": lambda: seeded(NearestNeighbours, size=10),
    "cloob": lambda: CLOOB(beta=8.0),
    "cloob, raw": lambda: CLOOB(beta=None),
    "cloob, info_nce": lambda: CLOOB(beta=3.0, contrast="info_nce"),
    "rank consistency": lambda: Drawing(RankConsistency()),
    "second view": lambda: SecondView(),
    "m2-mix": lambda: Drawing(CrossModalMix()),
    "v-mix": lambda: Drawing(UnimodalMix("image")),
    "l-mix": lambda: Drawing(UnimodalMix("text", epochs=3)),
    "vl-mix": lambda: Drawing(UnimodalMix("both")),
    "soft infonce": lambda: SoftInfoNCE(0.4),
    "soft infonce, uniform": lambda: SoftInfoNCE(0.4, "uniform"),
    "token match": lambda: OfModel(TokenMatch),
    "token match, hard": lambda: OfModel(lambda clip: TokenMatch(clip, "hungarian", hard_negatives=2)),
    "attentive-mask": lambda: OfModel(lambda clip: AttentiveMask(clip, hidden=6, width=4)),
    "imsep": lambda: IMSep(),
    "imsep plain": lambda: IMSep(["text"], semantic=False),
    "compared: infonce, hyperbolic": lambda: Compared(InfoNCE(), Geometry, "hyperbolic", 5),
    "compared: entailment": lambda: Compared(Entailment(), Geometry, "hyperbolic", 5),
    "compared: infonce, mixture": lambda: Compared(
        InfoNCE(local_loss=False), Mixture, 4, 4, 5, 4, tokens=3, heads=5, widen=(6, 2)
    ),
    "compared: siglip, mixture": lambda: Compared(
        SigLIP(), Mixture, 4, 4, 5, 4, tokens=3, heads=1, tau=0.5, widen=(6, 2)
    ),
}


class Together(nn.Module):
    """Objectives of which one needs what another gives: their sum."""

    def __init__(self, *objectives):
        super().__init__()
        self.objectives = nn.ModuleList(objectives)

    def forward(self, encoded):
        return {"sum": sum(value for each in self.objectives for value in each(encoded).values())}


class Drawing(nn.Module):
    """An objective that draws, in every process by a generator of its own; alone, by that of the first."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, encoded):
        torch.manual_seed(8 + world()[0])
        return self.objective(encoded)


class OfModel(nn.Module):
    """An objective of a micro CLIP, on pictures, crops and captions that are made of the rows of a pair."""

    def __init__(self, build):
        super().__init__()
        torch.manual_seed(6)
        self.clip = load("micro").double()
        self.objective = build(self.clip).double()

    def forward(self, encoded):
        rows, words = encoded.features("image").detach(), encoded.features("text").detach()
        generator = torch.Generator().manual_seed(7)
        batch = {"text": functional.pad(1 + (1e3 * words).long() % 999, (1, 1))}
        batch["text"][:, 0], batch["text"][:, -1] = 1022, 1023  # start and end
        for field in ("image", "image_view_1", "image_view_2", "cover_view"):
            paint = torch.randn(5, 3 * 32 * 32, generator=generator, dtype=torch.float64)
            batch[field] = (255 * (rows @ paint).sigmoid()).view(-1, 3, 32, 32)
        low, high = (rows[:, :4] / 9).sigmoid() / 2, 1 - (rows[:, 1:] / 9).sigmoid() / 2
        sides = torch.stack([low[:, :2], high[:, :2], low[:, 2:], high[:, 2:]], dim=1)
        batch["view_boxes"] = sides.view(-1, 2, 4)
        own = Encoded(self.clip, batch, progress=encoded.progress)
        if prepare := getattr(self.objective, "prepare", None):
            prepare(own)
        return self.objective(own)


class Batch(SimpleNamespace):
    """What objectives ask of an encoded batch, and its raw fields."""

    def __getitem__(self, field):
        return self.raw[field]


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
        given = {}

        def features(field):
            rows, tower = (images, self.image) if field.startswith("image") else (texts, self.text)
            # A view of a field shows the same with its columns moved on.
            return rows.roll(int(field[-1]) if field[-1].isdigit() else 0, dims=-1) @ tower

        def rows(field):
            return given[field] if field in given else functional.normalize(features(field), dim=-1)

        encoded = Batch(
            raw={"semantics": functional.normalize(texts[:, :2].abs(), dim=-1)},
            image=lambda field="image": rows(field),
            text=lambda field="text": rows(field),
            features=features,
            put=given.__setitem__,
            give=given.__setitem__,
            given=given.__getitem__,
            note=lambda name, value: None,
            logit_scale=self.logit_scale.exp(),
            logit_bias=self.logit_bias,
            comparison=COSINE,
            progress=torch.tensor(0.4),
        )
        for each in (self.objective, *getattr(self.objective, "objectives", ())):
            if prepare := getattr(each, "prepare", None):
                prepare(encoded)
        loss = sum(self.objective(encoded).values())
        # What an objective does not ask for would keep DistributedDataParallel from exchanging anything.
        return loss + 0 * sum(parameter.sum() for parameter in self.parameters())


def seeded(build, *arguments, **options):
    """An objective of embeddings of 5 numbers, with heads and queues that are the same in every process."""
    torch.manual_seed(6)
    return build(SimpleNamespace(model_cfg={"embed_dim": 5}), *arguments, **options).double()


def check_alone(processes, prefix):
    """Check that processes together found what one finds alone, in the cases whose names start so."""
    names = [name for name in CASES if name.startswith(prefix)]
    assert names
    for name in names:
        towers = Towers(CASES[name]())
        loss = towers(*pairs(len(processes)))
        loss.backward()
        alone = {"loss": loss.detach(), **gradients(towers), **dict(towers.named_buffers())}
        for found in processes:
            for key, value in alone.items():
                torch.testing.assert_close(
                    found[name][key], value, rtol=1e-9, atol=1e-11, msg=f"{name}: {key}"
                )


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
        found[name] = {"loss": mean, **gradients(towers.module), **dict(towers.module.named_buffers())}
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
    scale = {"logit_scale": 10.0, "logit_bias": -10.0, "comparison": COSINE}
    encoded = SimpleNamespace(image=lambda: rows, text=lambda: rows, **scale)
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
