"""What recipes that train a CLIP have in common: the loop's settings, batches, evaluations, trackers."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.config import build
from clipx.data.fields import VIEWS
from clipx.data.loading import is_stream, training_loader
from clipx.data.text_changes import TextChange
from clipx.data.transforms import TrainTransform
from clipx.data.views import views_of
from clipx.errors import ClipxError, missing_extra
from clipx.inference.evaluation import Evaluation
from clipx.models.clip import CLIP
from clipx.recipes.parts import open_source, tracked_settings
from clipx.run import Run
from clipx.training.distributed import world
from clipx.training.loop import Positions
from clipx.training.settings import LoopSettings

_WARMUP = 2000
"""Steps in which CLIP's learning rate rises (Radford et al. 2021, table 18)."""
_ALWAYS = {"image", "text", "label", "index"}
"""Fields that every training batch has."""


def loop_settings(training: DictConfig, source: Any, began_with: int | None = None) -> LoopSettings:
    """The loop's settings, with ``epochs`` turned into ``steps``, and batches no larger than the data.

    ``warmup`` of None is CLIP's 2000 steps, in a short training a fifth of it.

    Args:
        training: the keys of ``LoopSettings``, with ``epochs``.
        source: that is trained on.
        began_with: processes that a resumed run began with. Where they are others now, each takes another
            part of the same batches.

    Raises:
        ClipxError: neither steps nor epochs, epochs of a stream of unknown size, batches that the processes
            of now cannot share, or what ``LoopSettings`` raises.
    """
    rank, size = world()
    before = began_with or size
    values: dict[str, Any] = dict(OmegaConf.to_container(training, resolve=True))  # type: ignore[arg-type]
    epochs = values.pop("epochs")
    if not is_stream(source):
        values["batch_size"] = _within(len(source), values["batch_size"], before)
    if values["steps"] is None:
        if epochs is None or epochs <= 0:
            raise ClipxError(
                f"training.epochs={epochs} must be above 0", hint="set training.epochs or training.steps"
            )
        examples = source.size if is_stream(source) else len(source)
        if examples is None:
            raise ClipxError(
                "training.epochs needs data of known size", hint="set training.steps, or data.size for shards"
            )
        pairs = max(1, values["batch_size"] * values["accumulate"] * before)
        values["steps"] = max(1, math.ceil(epochs * examples / pairs))
    longest = int(values["steps"] // 5)
    if values["warmup"] is None:
        values["warmup"] = min(_WARMUP, longest)
    elif values["warmup"] > longest:  # a short trial run still warms up and trains
        if rank == 0:
            console.info(f"warm-up takes {longest} of the {values['steps']} steps, not {values['warmup']}")
        values["warmup"] = longest
    if before != size:
        values |= _reshared(values, before, size, is_stream(source))
        if rank == 0:
            console.warn(
                f"the run began with {before} processes and goes on with {size}, of {values['batch_size']} "
                "pairs each: the same batches in the same order, but not the same bits"
            )
    return LoopSettings(**values)


def _reshared(values: dict[str, Any], before: int, size: int, stream: bool) -> dict[str, Any]:
    """What ``size`` processes take of the batches of ``before`` processes.

    Raises:
        ClipxError: the batches cannot be cut into so many parts, or a stream would have another order.
    """
    pairs = values["batch_size"] * before
    reason = f"batches of {pairs} pairs cannot be cut into {size} equal parts" if pairs % size else ""
    if stream:
        reason = "the order of a stream depends on how many read it"
    if reason:
        raise ClipxError(
            f"the run began with {before} processes, this launch has {size}: {reason}",
            hint=f"--processes {before}, or as many by your launcher",
        )
    cached = values.get("gradient_cache")
    changed = {} if cached is None else {"gradient_cache": min(cached, pairs // size)}
    return {"batch_size": pairs // size, **changed}


def _within(size: int, batch_size: Any, processes: int) -> Any:
    # A pair that a batch holds twice would be a negative of itself.
    rank = world()[0]
    room = max(2 if processes == 1 else 1, size // processes)
    if not isinstance(batch_size, int | float) or batch_size <= room:
        return batch_size
    if rank == 0:
        console.info(f"a batch takes {room} pairs, not {batch_size}: the data has {size}")
    return room


def evaluation_of(
    config: DictConfig, data: DictConfig, split: str, limit: int | None = None, *, remember: int = 0
) -> Evaluation:
    """What measures models on a split of some data; ``limit`` and ``remember`` as ``Evaluation`` has them."""
    return Evaluation(
        open_source(data, split),
        templates=config.evaluation.templates,
        batch_size=config.evaluation.batch_size,
        workers=config.loader.workers,
        limit=limit,
        remember=remember,
    )


def tracking(config: DictConfig, run: Run) -> dict[str, Any]:
    """What an Accelerator has to know of the tracker that is asked for.

    Raises:
        ClipxError: it is not installed.
    """
    name = config.tracker.name
    if not name or not run.writes:
        return {}
    from accelerate.tracking import get_available_trackers

    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise missing_extra(name, "trackers")
    return {"log_with": name, "project_dir": str(run.path("tracker"))}


@contextlib.contextmanager
def tracked(accelerator: Accelerator, config: DictConfig) -> Iterator[None]:
    """Trackers from here on; also after an error all that they were told is written."""
    if accelerator.log_with:
        accelerator.init_trackers(config.tracker.project, config=tracked_settings(config))
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise


def batches(
    source: Any,
    clip: CLIP,
    config: DictConfig,
    *,
    batch_size: int,
    templates: Sequence[str],
    needs: Iterable[str],
) -> Callable[[tuple[int, int], Positions], Iterable[dict[str, Any]]]:
    """What ``Trainer.fit`` takes: from the steps, and where a stream's readers stand, to batches.

    Args:
        source: to train on.
        clip: whose image size and tokenizer the batches are for.
        config: augment, semantics, seed and loader.workers.
        batch_size: of each process.
        templates: of examples without a caption.
        needs: batch fields that the objectives ask for.
    """
    rank, size = world()
    options: dict[str, Any] = dict(OmegaConf.to_container(config.augment))  # type: ignore[arg-type]
    changed: dict[str, Any] = {name: options.pop(name) for name in ("view", "text_view") if name in options}
    captions = options.pop("captions", "random")
    stop_words = options.pop("stop_words", 0.0)
    change = TextChange(stop_words, synonyms=0, swap=0, delete=0, keep=1) if stop_words else None
    extras = [field for field in needs if field not in _ALWAYS]
    views = views_of(clip.image_size, changed, extras) if {*VIEWS} & {*extras} else None
    transform = TrainTransform(
        clip.image_size, mean=clip.preprocess_cfg["mean"], std=clip.preprocess_cfg["std"], **options
    )
    return lambda steps, positions: training_loader(
        source,
        transform=transform,
        tokenize=clip.tokenize,
        templates=templates,
        extras=extras,
        views=views,
        change=change,
        captions=captions,
        semantics=build(config.semantics) if "semantics" in extras else None,
        batch_size=batch_size,
        seed=config.seed,
        steps=steps,
        workers=config.loader.workers,
        rank=rank,
        world=size,
        positions=positions,
    )
