"""Small data, a small model and a trainer around them, for the tests of the training loop."""

import copy
import functools
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from clipx.data.loading import training_loader
from clipx.data.transforms import TrainTransform
from clipx.errors import BadSample
from clipx.models.loading import load
from clipx.objectives.alignment import Alignment
from clipx.objectives.barlow import Barlow
from clipx.objectives.class_contrast import ClassContrast
from clipx.objectives.cloob import CLOOB
from clipx.objectives.cross_entropy import CrossEntropy
from clipx.objectives.geodesic_mixup import CrossModalMix, UnimodalMix
from clipx.objectives.imsep import IMSep
from clipx.objectives.infonce import InfoNCE, info_nce
from clipx.objectives.multi_view import MultiView
from clipx.objectives.neighbours import NearestNeighbours
from clipx.objectives.projected_views import ProjectedViews
from clipx.objectives.prompt_cross_entropy import PromptCrossEntropy
from clipx.objectives.rank_consistency import RankConsistency
from clipx.objectives.siglip import SigLIP
from clipx.objectives.simsiam import SimSiam
from clipx.objectives.soft_infonce import SoftInfoNCE
from clipx.objectives.uniformity import CrossUniformity, Uniformity
from clipx.run import Run
from clipx.training.loop import Trainer
from clipx.training.module import TrainingModule
from clipx.training.optimizer import parameter_groups
from clipx.training.settings import LoopSettings

COLOURS = ("red", "green", "blue", "white")


class Pictures:
    """Noise with a tint, 40 of them; ``bad`` ones cannot be used."""

    name = "pictures"
    classes = list(COLOURS)
    templates = ("a {} picture",)

    def __init__(self, size=40, bad=(), reason="truncated image"):
        self.size, self.bad, self.reason = size, set(bad), reason

    def __len__(self):
        return self.size

    def examples(self, indices):
        return [self.example(index) for index in indices]

    def example(self, index):
        if index in self.bad:
            return BadSample(f"{self.reason}: {index}.jpg")
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image[..., index % 3] //= 4
        captions = [f"a {COLOURS[index % 4]} picture", f"picture {index}"]
        return {"image": image, "captions": captions, "label": index % 4, "id": str(index)}


class Stream:
    """The same pictures from front to back, each worker its share in an order of its own."""

    name = "stream"
    classes = Pictures.classes
    templates = Pictures.templates

    def __init__(self, size=40, bad=()):
        self.pictures, self.size = Pictures(size, bad), size

    def stream(self, *, seed, epoch, rank, world, worker, workers, skip):
        share = np.arange(self.size)[rank * workers + worker :: world * workers]
        for index in np.random.default_rng([seed, epoch, worker]).permutation(share)[skip:]:
            yield self.pictures.example(int(index))


class Killed(BaseException):
    """Stands for an abrupt end."""


@functools.cache
def _loaded(**options):
    torch.manual_seed(0)
    return load("micro", **options)


def clip(**options):
    """A micro CLIP of its own, with the same random weights every time."""
    return copy.deepcopy(_loaded(**options))


def trainer(
    run,
    *,
    objectives=None,
    model=None,
    lr=1e-3,
    weight_decay=0.1,
    optimizer=None,
    evaluate=None,
    best="top1",
    **settings,
):
    """A trainer of 12 steps of 8 pairs, unless told otherwise."""
    module = TrainingModule(model or clip(), objectives or {"infonce": InfoNCE()})
    groups = parameter_groups(module, weight_decay)
    built = (optimizer or (lambda groups: torch.optim.AdamW(groups, lr=lr)))(groups)
    steps = settings.setdefault("steps", 12)
    given = {"batch_size": 8, "warmup": min(2, steps), "log_every": 1, "schedule": "constant", **settings}
    return Trainer(module, built, LoopSettings(**given), run, seed=3, evaluate=evaluate, best=best)


def batches(made, source=None, workers=0, *, stop_before=None, poison=None, rank=0, world=1):
    """The ``loader`` argument of ``fit``.

    Args:
        made: the trainer.
        source: of the data, 40 pictures by default.
        workers: loader processes.
        stop_before: raise ``Killed`` instead of yielding this micro-batch.
        poison: called with (micro-batch number, batch) on the way.
    """
    source = source or Pictures()

    def loader(span, positions):
        loaded = training_loader(
            source,
            transform=TrainTransform(32),
            tokenize=made.module.clip.tokenize,
            batch_size=made.settings.batch_size,
            seed=3,
            steps=span,
            workers=workers,
            rank=rank,
            world=world,
            positions=positions,
        )
        for number, batch in enumerate(loaded, span[0]):
            if number == stop_before:
                raise Killed
            if poison:
                poison(number, batch)
            yield batch

    return loader


def new_run(folder):
    return Run.create(folder, "pretrain", "test", {})


def state(made):
    """Every tensor that a run's end depends on."""
    found = {f"module.{name}": value.clone() for name, value in made.module.state_dict().items()}
    for index, slots in made.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value.clone() for name, value in slots.items()}
    if made.average is not None:
        found |= {f"average.{name}": value.clone() for name, value in made.average.state_dict().items()}
    return found


def differing(one, other):
    """Names of tensors that are not bit-identical."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def losses(run):
    """What metrics.jsonl says, without what a clock measured."""
    timed = {"images_per_second", "data_wait"}
    return [{key: value for key, value in record.items() if key not in timed} for record in run.metrics()]


def spawn(work, world, folder):
    """Let ``work(rank, world, folder)`` run in gloo processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        Path(folder, "port").write_text(str(free.getsockname()[1]))
    torch.multiprocessing.spawn(work, (world, str(folder)), nprocs=world)


def _join(rank, world, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(folder, "port").read_text()}


def distributed_fit(rank, world, folder):
    """The work of one of several gloo processes: fit, checkpoint, and tell what came of it."""
    _join(rank, world, folder)
    run = new_run(Path(folder, "outputs"))
    made = trainer(run, steps=4, checkpoint_every=2, evaluate=lambda clip: {"top1": rank / 2})
    source = Stream(bad=[4 * rank + 1])
    fitted = made.fit(batches(made, source, rank=rank, world=world))
    found = {"weights": state(made), "writes": run.writes, "bad": fitted.bad, "images": fitted.images}
    found["evaluation"] = fitted.evaluation
    torch.save(found, Path(folder, f"{rank}.pt"))
    if run.writes:
        Path(folder, "run").write_text(json.dumps(str(run.directory)))
        run.end("interrupted")
    made.accelerator.end_training()


def stepped(run, objectives, taken, *, model=None, **settings):
    """A trainer after one plain gradient step of length 0.01 in float64.

    Args:
        run: for its metrics.
        objectives: by name.
        taken: the batches it takes.
        model: to train, a micro CLIP with a bias by default.
    """
    given = {"steps": 1, "warmup": 0, "batch_size": len(taken[0]["text"]), "weight_decay": 0.0, **settings}
    made = trainer(
        run,
        objectives=objectives,
        model=(model or clip(init_logit_bias=-2.0)).double(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01),
        **given,
    )
    made.fit(lambda span, positions: [dict(batch) for batch in taken])
    return made


def pairs(count, seed=0):
    """A batch of noise, with labels and meanings."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "text": torch.randint(1, 1000, (count, 16), generator=generator),
        "label": torch.randint(0, 4, (count,), generator=generator),
        "semantics": functional.normalize(torch.rand(count, 6, generator=generator), dim=-1),
    }


def distributed_step(rank, world, folder):
    """The work of one of several gloo processes: a cached step on its share of ``pairs(10)``."""
    _join(rank, world, folder)
    batch = {name: value.chunk(world)[rank] for name, value in pairs(10).items()}
    found = {"exchanges": []}

    def note(module, inputs):
        if isinstance(module, DistributedDataParallel) and torch.is_grad_enabled():
            found["exchanges"].append(module.require_backward_grad_sync)

    register_module_forward_pre_hook(note)
    for name, build in CACHED.items():
        made = stepped(new_run(Path(folder, "outputs")), build(), [batch], gradient_cache=2)
        found[name] = made.module.state_dict()
    torch.save(found, Path(folder, f"{rank}.pt"))
    made.accelerator.end_training()


CACHED = {
    "infonce": lambda: {"infonce": InfoNCE(label_smoothing=0.1)},
    "infonce, chunked": lambda: {"infonce": InfoNCE(chunk_size=3)},
    "siglip": lambda: {"siglip": SigLIP()},
    "siglip, chunked": lambda: {"siglip": SigLIP(chunk_size=3)},
    "prompts, drawn": lambda: {"prompts": PromptCrossEntropy(_class_prompts(), "random")},
    "prompts, averaged": lambda: {"prompts": PromptCrossEntropy(_class_prompts(), "average")},
    "infonce, alignment, uniformity": lambda: {
        "infonce": InfoNCE(),
        "alignment": Alignment(),
        "uniformity": Uniformity(),
        "cross_uniformity": CrossUniformity(),
    },
    "cloob": lambda: {"cloob": CLOOB(learn_beta=True).double()},
    "rankings": lambda: {"infonce": InfoNCE(), "ranks": LateRanks()},
    "mixes": lambda: {
        "infonce": InfoNCE(),
        "m2": CrossModalMix(),
        **{side: UnimodalMix(side) for side in ("image", "text", "both")},
    },
    "soft targets": lambda: {"soft_infonce": LateSoft(0.4)},
    "separation": lambda: {"infonce": InfoNCE(), "imsep": IMSep()},
    "views, heads and a queue": lambda: {"infonce": InfoNCE(), **_views()},
    "two, and a head": lambda: {"class": ClassContrast("equal"), "head": _head()},
}
"""Objectives that train with a gradient cache."""


class LateRanks(RankConsistency):
    """As in the middle of a training: at its start rankings have no weight."""

    def forward(self, encoded):
        encoded.progress = torch.tensor(0.5)
        return super().forward(encoded)


class LateSoft(SoftInfoNCE):
    """As in the middle of a training: at its start targets are hard."""

    def forward(self, encoded):
        encoded.progress = torch.tensor(0.5)
        return super().forward(encoded)


def _class_prompts():
    return torch.randint(1, 1000, (4, 3, 16), generator=torch.Generator().manual_seed(0))


def _views():
    torch.manual_seed(0)
    like, pair = SimpleNamespace(model_cfg={"embed_dim": 32}), [["image", "text"]]
    made = {
        "views": MultiView(["image"], ["text"]),
        "projected": ProjectedViews(like, ["image"], ["text"], hidden=6, width=4),
        "siam": SimSiam(like, pair, 6, 4, 2, 3),
        "barlow": Barlow(like, pair, hidden=6, width=4),
        "nn": NearestNeighbours(like, ["image"], ["text"], size=20),
    }
    return {name: objective.double() for name, objective in made.items()}


def _head():
    classifier = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CrossEntropy(classifier)


class Dropping(nn.Module):
    """Dropout on the image embedding, to make a step random."""

    needs = ("image", "text")

    def forward(self, encoded):
        image = nn.functional.dropout(encoded.image(), 0.3)
        return {"infonce": info_nce(image, encoded.text(), encoded.logit_scale)}
