"""Find and build a CLIP: a preset, an open_clip architecture, a hub id, a checkpoint file, a run."""

import contextlib
import json
import logging
import math
import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean, missing_extra
from clipx.hub import cache_only_when_unreachable
from clipx.models.clip import CLIP, CONFIG_FILE, MAX_LOG_SCALE, WEIGHTS_FILE, is_small_vocabulary
from clipx.models.comparison import attach
from clipx.models.final_norm import remove_final_norms
from clipx.models.geometry import COSINE
from clipx.models.surgery.shared_trunk import check_equal_weights, share_trunk
from clipx.models.surgery.short_text import keep_text_layers
from clipx.models.tokenizer import small_tokenizer

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the CPU-sized architectures that come with clipx."""
    return sorted(path.name for path in PRESETS.iterdir() if (path / CONFIG_FILE).is_file())


def load(
    name: str = "tiny",
    pretrained: str | None = None,
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    text_layers: int | None = None,
    init_logit_scale: float | None = None,
    init_logit_bias: float | None = None,
    comparison: Mapping[str, Any] | None = None,
    final_norm: bool | None = None,
    logit_scale_bounds: Sequence[float | None] | None = None,
    share: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> CLIP:
    """Build a CLIP and load its weights.

    Args:
        name: a preset (``tiny``, ``tiny-vit``, ``micro``), an open_clip architecture (``ViT-B-32``),
            ``hf-hub:org/repo``, or a folder (a run, or one that ``CLIP.save`` or open_clip wrote).
        pretrained: an open_clip tag (``openai``), a checkpoint file, a run or model folder of the same
            architecture, ``tiny`` for the weights that ship with clipx; None for random weights (a folder or
            hub id as ``name`` brings its own).
        image_size: pixels, to change the resolution; position embeddings are interpolated.
        context_length: tokens, to change the text length.
        text_layers: of the text tower that stay, the first ones; None for all.
        init_logit_scale: log of the initial scale where the weights are random.
        init_logit_bias: gives the model a learnt bias that starts here (SigLIP); also where the weights have
            none.
        comparison: how images and texts are compared: ``kind``, one of ``clipx.models.comparison.KINDS``, and
            its settings, see ``clipx.models.geometry.Geometry`` and ``clipx.models.mixture.Mixture``. Without
            a kind, settings in the place of those that the model was saved with. None: as it was saved, else
            the cosine.
        final_norm: false takes the last layer norm from both towers, see ``remove_final_norms``; None: as it
            was saved.
        logit_scale_bounds: logs of the smallest and largest scale in training, None for no bound; None: as it
            was saved, else (0, ln 100).
        share: what both towers have in common, of ``clipx.models.surgery.shared_trunk.PARTS``; None: as it
            was saved, else nothing.
        device: where to put the model.

    Raises:
        ClipxError: unknown name or tag, unreachable hub, unreadable or mismatching checkpoint.
    """
    import open_clip

    # A folder that happens to be called like an architecture is meant as ./NAME.
    architecture = name.replace("/", "-")
    own_folder = None if architecture in open_clip.list_models() else _model_folder(name)
    if own_folder is None and Path(name).is_file():
        raise ClipxError(
            f"{name} is a file: a model is named by its architecture or its folder",
            hint=f"weights: model=ARCHITECTURE model.pretrained={name}; or a folder with {CONFIG_FILE}",
        )
    init = {"init_logit_scale": init_logit_scale, "init_logit_bias": init_logit_bias}
    init = {key: value for key, value in init.items() if value is not None}
    checkpoint: Path | None = None
    saved: dict[str, Any] = {}
    if own_folder is not None:
        location = f"local-dir:{own_folder}"
        model_cfg, preprocess_cfg, saved = _read_config(own_folder)
        load_weights = pretrained is None and own_folder.parent != PRESETS
        if load_weights:
            weights = _weights(own_folder)
            if saved:  # open_clip could not put them in their places
                checkpoint, load_weights = weights, False
        if pretrained is not None:
            checkpoint, brought, saved = _checkpoint(name, pretrained, model_cfg)
            preprocess_cfg = {**preprocess_cfg, **brought}
    elif name.startswith(("hf-hub:", "local-dir:")):
        location, load_weights, preprocess_cfg = name, True, {}
        model_cfg = _hub_config(name)
    else:
        given, name = name, architecture
        model_cfg = open_clip.get_model_config(name)
        if model_cfg is None:
            raise ClipxError(
                f"there is no model {given!r}",
                hint=did_you_mean(name, [*preset_names(), *open_clip.list_models()]),
            )
        location, load_weights, preprocess_cfg = name, False, {}
        if pretrained is not None:
            tags = open_clip.list_pretrained_tags_by_model(name)
            if pretrained in tags:
                load_weights = True
            else:
                checkpoint, preprocess_cfg, saved = _checkpoint(name, pretrained, model_cfg, tags)

    loaded = load_weights or checkpoint is not None
    # open_clip interpolates the positions of a transformer as it loads weights; those of a ResNet are left to
    # us.
    by_us = image_size is not None and loaded and isinstance(model_cfg["vision_cfg"].get("layers"), list)
    sizes = {"force_image_size": None if by_us else image_size, "force_context_length": context_length}
    tag = pretrained if load_weights and own_folder is None else None
    model = _create(location, tag, load_weights, sizes, init)
    own_cfg = _own_config(saved, comparison, final_norm, logit_scale_bounds, share)
    width = int(model_cfg["embed_dim"])
    # What the weights were saved with is there before them, what replaces it after.
    before = {key: own_cfg[key] if _same_kind(saved, own_cfg, key) else saved[key] for key in saved}
    _apply(model, before, width)
    if checkpoint is not None:
        _load_checkpoint(model, checkpoint, name)
    new = {key: value for key, value in own_cfg.items() if before.get(key) != value}
    if text_layers is not None:
        keep_text_layers(model, text_layers)
        model_cfg = {**model_cfg, "text_cfg": {**model_cfg["text_cfg"], "layers": text_layers}}
    if loaded and "share" in new:
        check_equal_weights(model, new["share"])
    _apply(model, new, width)
    if "comparison" in own_cfg:
        own_cfg["comparison"] = model.comparison.spec  # type: ignore[union-attr]
        if own_cfg["comparison"] == COSINE.spec:
            del own_cfg["comparison"]
    if by_us:
        assert image_size is not None
        _resize_attention_pool(model.visual, image_size)  # type: ignore[arg-type]
    bias = getattr(model, "logit_bias", None)
    if bias is not None:
        # open_clip fills a bias that the weights lack with zero.
        if init_logit_bias is not None and not (loaded and bool(bias.detach().ne(0).any())):
            nn.init.constant_(bias, init_logit_bias)
        # The architecture that is saved has to have one too.
        init.setdefault("init_logit_bias", model_cfg.get("init_logit_bias", 0.0))

    model_cfg = _final_config(model_cfg, image_size, context_length, init)
    preprocess_cfg = {
        **_default_preprocess(),
        **open_clip.model.get_model_preprocess_cfg(model),
        **preprocess_cfg,
        "size": model.visual.image_size,  # type: ignore[union-attr]
    }
    tokenizer = _tokenizer(name, location, model_cfg)
    return CLIP(model, tokenizer, model_cfg, preprocess_cfg, Path(name).name, own_cfg).to(device)


def _own_config(
    saved: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    final_norm: bool | None,
    bounds: Sequence[float | None] | None,
    share: Sequence[str] | None,
) -> dict[str, Any]:
    """What a model has that open_clip does not know of: as it was saved, and as it is asked for now."""
    own = dict(saved)
    if comparison is not None:
        before = dict(saved.get("comparison") or {"kind": "clip"})
        same = comparison.get("kind", before["kind"]) == before["kind"]
        own["comparison"] = {**before, **comparison} if same else dict(comparison)
    if final_norm is not None:
        if final_norm and saved.get("final_norm", True) is False:
            raise ClipxError("this model was trained without final norms: it has none to put back")
        own |= {} if final_norm else {"final_norm": False}
    if bounds is not None:
        own["logit_scale_bounds"] = _checked_bounds(bounds)
        if own["logit_scale_bounds"] == [0.0, MAX_LOG_SCALE]:
            del own["logit_scale_bounds"]
    if share is not None:
        own["share"] = list(share)
        if not share:
            del own["share"]
    return own


def _checked_bounds(bounds: Sequence[float | None]) -> list[float | None]:
    found = [None if each is None else float(each) for each in bounds]
    if len(found) == 2:
        low, high = found
        if low is None or high is None or low < high:
            return found
    raise ClipxError(
        f"logit_scale_bounds={list(bounds)} are no bounds",
        hint="logs of the smallest and largest scale: [0,4.6052]; null for none",
    )


def _same_kind(saved: Mapping[str, Any], own_cfg: Mapping[str, Any], key: str) -> bool:
    if key not in own_cfg:
        return False
    if key == "share":
        return saved[key] == own_cfg[key]
    return key != "comparison" or saved[key]["kind"] == own_cfg[key]["kind"]


def _apply(model: nn.Module, own_cfg: Mapping[str, Any], width: int) -> None:
    if own_cfg.get("final_norm") is False:
        remove_final_norms(model)
    if "comparison" in own_cfg:
        attach(model, own_cfg["comparison"], width)
    if "share" in own_cfg:
        share_trunk(model, own_cfg["share"])


def _default_preprocess() -> dict[str, Any]:
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg

    return asdict(PreprocessCfg())


def _model_folder(name: str) -> Path | None:
    """The folder that holds a model of this name (preset, run, model folder), None where it is no folder."""
    path = Path(name.removeprefix("local-dir:"))
    for folder in (PRESETS / name, path, path / "model"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if path.is_dir() or name.startswith("local-dir:"):
        raise ClipxError(
            f"{path} holds no model: there is no {CONFIG_FILE}",
            hint="a run writes model/ when it completes; --resume finishes an interrupted one",
        )
    return None


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The architecture, the preprocessing, and what open_clip does not know of, of the model in a folder."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return config["model_cfg"], config.get("preprocess_cfg", {}), config.get("clipx", {})
    except (OSError, ValueError, KeyError) as error:
        raise ClipxError(f"{folder / CONFIG_FILE} is not an open_clip configuration: {error}") from error


def _hub_config(name: str) -> dict[str, Any]:
    import open_clip

    try:
        with cache_only_when_unreachable():
            return open_clip.get_model_config(name)
    except Exception as error:  # the hub client raises a dozen types, all mean: not to be had
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ClipxError:
    return ClipxError(
        f"cannot get {name}: {_in_one_line(error)}",
        hint="is there a network? A downloaded checkpoint works offline: model.pretrained=PATH",
    )


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checkpoint(
    name: str, pretrained: str, model_cfg: dict[str, Any], tags: list[str] | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The weights file that ``pretrained`` names, and the preprocessing and comparison it was trained with
    where a folder says so.

    Raises:
        ClipxError: there is no such file, or its folder says that it is of another architecture.
    """
    path = Path(pretrained)
    if path.is_file():
        return path, {}, {}
    folder = _model_folder(pretrained)
    if folder is None:
        choices = [*(tags or []), *preset_names()]
        raise ClipxError(
            f"{name} has no pretrained weights {pretrained!r}", hint=did_you_mean(pretrained, choices)
        )
    other, preprocess_cfg, saved = _read_config(folder)
    if _towers(other) != _towers(model_cfg):
        raise ClipxError(
            f"{pretrained} holds another architecture than {name}", hint=f"use its own: model={pretrained}"
        )
    return _weights(folder), preprocess_cfg, saved


def _weights(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin", ".pth"})
    own = folder / WEIGHTS_FILE
    if not files:
        raise ClipxError(f"{folder} has no weights ({WEIGHTS_FILE})")
    return own if own in files else files[0]


def _towers(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """What has to agree for weights to fit; positions are interpolated, so that sizes need not."""
    towers = {key: value for key, value in model_cfg.items() if not key.startswith("init_")}
    for tower, size in (("vision_cfg", "image_size"), ("text_cfg", "context_length")):
        towers[tower] = {key: value for key, value in towers[tower].items() if key != size}
    return towers


def _create(
    location: str, pretrained: str | None, load_weights: bool, sizes: dict[str, Any], init: dict[str, Any]
) -> nn.Module:
    import open_clip

    quiet = logging.getLogger()
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # open_clip logs what it raises, and warns where weights are not wanted
    try:
        with cache_only_when_unreachable() if load_weights else contextlib.nullcontext():
            return open_clip.create_model(
                location,
                pretrained,
                load_weights=load_weights,
                require_pretrained=load_weights,
                **sizes,
                **init,
            )
    except Exception as error:  # download, decode and shape errors of many types: one answer to the user
        if "size mismatch" in str(error) or "Missing key" in str(error):
            raise ClipxError(f"the weights of {location} do not fit it: {_in_one_line(error)}") from error
        if location.startswith("local-dir:"):
            folder = location.removeprefix("local-dir:")
            raise ClipxError(f"the model in {folder} cannot be read: {_in_one_line(error)}") from error
        raise _unreachable(f"{location} {pretrained or ''}".strip(), error) from error
    finally:
        quiet.setLevel(level)


def _load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    try:
        _fill(model, path)
    except pickle.UnpicklingError as error:
        raise ClipxError(
            f"{path} holds more than tensors and is not opened: that could run any program",
            hint="save it as safetensors, or as a plain state_dict",
        ) from error
    except Exception as error:  # no such format, missing keys, size mismatch: all mean the file does not fit
        raise ClipxError(
            f"{path} is not a checkpoint of {name}: {_in_one_line(error)}",
            hint="name the architecture it was trained with: model=ARCHITECTURE model.pretrained=PATH",
        ) from error


def _fill(model: nn.Module, path: Path) -> None:
    import open_clip

    try:
        open_clip.load_checkpoint(model, str(path), weights_only=True)
    except AttributeError:
        if model.logit_bias is not None:
            raise
        # The checkpoint has a bias; open_clip compares its shape with that of the model's, which has none.
        model.logit_bias = nn.Parameter(torch.zeros([]))
        open_clip.load_checkpoint(model, str(path), weights_only=True)


@torch.no_grad()
def _resize_attention_pool(visual: nn.Module, image_size: int) -> None:
    """Interpolate the positions of a ResNet's attention pool, as open_clip does those of a transformer."""
    pool = visual.attnpool
    positions: torch.Tensor = pool.positional_embedding  # type: ignore[union-attr, assignment]
    own, grid = positions[:1], positions[1:]
    before, after = math.isqrt(len(grid)), image_size // 32
    if after < 1:
        raise ClipxError(f"image_size is {image_size}, a ResNet needs at least 32")
    square = grid.T.reshape(1, -1, before, before)
    square = functional.interpolate(square, (after, after), mode="bicubic", antialias=True)
    pool.positional_embedding = nn.Parameter(torch.cat([own, square.flatten(2)[0].T]))  # type: ignore[union-attr]
    visual.image_size = image_size  # type: ignore[assignment]


def _final_config(
    model_cfg: dict[str, Any], image_size: int | None, context_length: int | None, init: dict[str, Any]
) -> dict[str, Any]:
    final = deepcopy(model_cfg)
    if image_size is not None:
        final["vision_cfg"]["image_size"] = image_size
    if context_length is not None:
        final["text_cfg"]["context_length"] = context_length
    return {**final, **init}


def _tokenizer(name: str, location: str, model_cfg: dict[str, Any]) -> Any:
    import open_clip

    text_cfg = model_cfg["text_cfg"]
    if is_small_vocabulary(text_cfg):
        return small_tokenizer(text_cfg["vocab_size"], text_cfg.get("context_length", 77))
    try:
        with cache_only_when_unreachable() if text_cfg.get("hf_tokenizer_name") else contextlib.nullcontext():
            return open_clip.get_tokenizer(location, context_length=text_cfg.get("context_length"))
    except ImportError as error:
        raise missing_extra("transformers", "transformers") from error
    except Exception as error:  # a tokenizer on the hub
        raise _unreachable(f"the tokenizer of {name}", error) from error
