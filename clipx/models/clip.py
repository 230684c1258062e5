"""CLIP: an open_clip model with its tokenizer and preprocessing, as one module."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.models.comparison import Comparison
from clipx.models.geometry import Geometry
from clipx.models.geometry import unit_rows as unit_rows
from clipx.models.text import shorten
from clipx.models.tokenizer import FULL_VOCABULARY, MERGES_FILE, merges

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MAX_LOG_SCALE = 4.605170185988092
"""ln 100, the upper bound that CLIP puts on its logit scale (Radford et al. 2021, section 2.5)."""


class CLIP(nn.Module):
    """An image tower, a text tower, and how an image is compared with a text.

    What is stored of an image or a text, whatever handles embeddings, is a *row*: a unit vector in a CLIP as
    OpenAI made it, and whatever the comparison of this model takes in another. Everything downstream compares
    rows through ``score``, so that a model whose comparison is not a dot product needs no other change.

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``.
        tokenizer: ``list[str] -> int64 [B, L]``.
        model_cfg: the open_clip architecture, as it is saved.
        preprocess_cfg: open_clip's preprocessing: size, mean, std, interpolation, resize_mode.
        name: what the user called it.
        own_cfg: what open_clip does not know of: ``comparison`` (its ``kind`` and settings), ``final_norm``,
            ``logit_scale_bounds`` and ``share``, as they are saved; nothing where all is as open_clip has it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        model_cfg: dict[str, Any],
        preprocess_cfg: dict[str, Any],
        name: str,
        own_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        if not hasattr(model, "comparison"):
            model.comparison = Geometry()  # part of the model, so that what knows weights knows its own
        self.tokenizer = tokenizer
        self.model_cfg = model_cfg
        self.preprocess_cfg = preprocess_cfg
        self.name = name
        self.own_cfg = dict(own_cfg or {})
        self.register_buffer("mean", torch.tensor(preprocess_cfg["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess_cfg["std"]).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for batch norms without gradient: what is locked keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                own = list(module.parameters())
                module.train(mode and (not own or any(parameter.requires_grad for parameter in own)))
        return self

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        size = self.preprocess_cfg["size"]
        return int(size) if isinstance(size, int) else int(size[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def comparison(self) -> Comparison:
        """How rows are compared."""
        return self.model.comparison  # type: ignore[return-value]

    @property
    def logit_scale(self) -> Tensor:
        """exp of the learnt log-temperature, a scalar; in [1, 100] unless the model has other bounds."""
        return self.model.logit_scale.exp()  # type: ignore[operator]

    @property
    def logit_bias(self) -> Tensor | None:
        """The learnt bias of the pair logits (SigLIP), or None."""
        return getattr(self.model, "logit_bias", None)

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Rows ``[B, F]`` of normalised images ``[B, 3, H, W]``: unit rows where the comparison is a cosine.

        Without ``normalize``, what the tower gives before it becomes a row.
        """
        features = self.comparison.image_features(self.model, images)
        return self.comparison.image_rows(features) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Rows ``[B, F]`` of token ids ``[B, L]``: unit rows where the comparison is a cosine.

        Without ``normalize``, what the tower gives before it becomes a row. ``L`` is the context length, or
        less where ``shorten`` has cut the tokens.
        """
        features = self.comparison.text_features(self.model, tokens)
        return self.comparison.text_rows(features) if normalize else features

    def score(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compare every image with every text: logits ``[M, N]``, higher is more alike.

        Args:
            image_features: rows ``[M, F]`` as ``encode_image`` gives them.
            text_features: rows ``[N, F]`` as ``encode_text`` gives them.
        """
        logits = self.comparison.image_to_text(image_features, text_features, self.logit_scale)
        bias = self.logit_bias
        return logits if bias is None else logits + bias

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 ``[B, L]`` of texts; longer ones are cut at the context length."""
        return self.tokenizer(list(texts))

    def shorten(self, tokens: Tensor) -> Tensor:
        """Token ids ``[..., L]`` without the padding that every text of them has; their features stay.

        Costs a look at the tokens, so it is for tokens on the CPU, before they travel to the device.
        """
        return shorten(self.model, tokens)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images ``[B, 3, H, W]`` into what ``encode_image`` takes."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    @functools.cached_property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """Resize and crop of an RGB PIL image into uint8 ``[3, H, W]``: open_clip's up to ``ToTensor``."""
        from clipx.data.transforms import inference_transform

        return inference_transform(self.preprocess_cfg)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the logit scale in its bounds, [1, 100] unless the model has others, and what the comparison
        bounds in its own; called after every optimizer step.
        """
        low, high = self._scale_bounds
        if low is not None or high is not None:
            self.model.logit_scale.clamp_(low, high)  # type: ignore[operator]
        self.comparison.clamp()

    @property
    def _scale_bounds(self) -> tuple[float | None, float | None]:
        """Of the logarithm of the logit scale; None for none."""
        return self.own_cfg.get("logit_scale_bounds", (0.0, MAX_LOG_SCALE))

    @torch.no_grad()
    def set_logit_scale(self, scale: float) -> None:
        """Put another logit scale in the place of the model's, also where that is a trained one.

        Raises:
            ClipxError: it is no number, or not within the bounds that ``clamp_logit_scale`` keeps.
        """
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ClipxError(f"logit_scale={scale} is no number", hint="logit_scale=100, or null")
        low, high = (bound if bound is None else math.exp(bound) for bound in self._scale_bounds)
        most = math.inf if high is None else high * (1 + 1e-6)  # the logarithm of 100 is rounded
        if not 0 < scale < math.inf or not (low or 0.0) <= scale <= most:
            within = f"{low or 0:g} and {'infinity' if high is None else format(high, 'g')}"
            raise ClipxError(
                f"logit_scale={scale} must lie between {within}", hint="model.logit_scale_bounds"
            )
        self.model.logit_scale.fill_(math.log(scale))  # type: ignore[operator]

    def fingerprint(self) -> str:
        """A hash of the weights, the architecture, the comparison and the preprocessing: equal for equal
        embeddings.
        """
        digest = hashlib.blake2b(digest_size=16)
        configs = [self.model_cfg, self.preprocess_cfg, *([self.own_cfg] if self.own_cfg else [])]
        digest.update(json.dumps(configs, sort_keys=True, default=str).encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                if value.ndim
                else repr(value.item()).encode()
            )
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write a folder that ``open_clip.create_model_and_transforms("local-dir:<folder>")`` loads.

        A model with a comparison of its own, or without final norms, is no CLIP to open_clip: ``load`` reads
        its folder, and open_clip refuses the weights, whose names it does not know.

        Holds ``open_clip_config.json``, ``open_clip_model.safetensors``, the files of a Hugging Face
        tokenizer and, for a small vocabulary, the merges of its own, which open_clip takes as
        ``SimpleTokenizer(bpe_path="<folder>/bpe_merges.txt.gz", context_length=...)``.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(with_own_memory(self.model.state_dict()), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        if self.own_cfg:
            config["clipx"] = self.own_cfg
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        text_cfg = self.model_cfg["text_cfg"]
        if is_small_vocabulary(text_cfg):
            (folder / MERGES_FILE).write_bytes(merges(text_cfg["vocab_size"]))
        elif hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)
        return folder


def with_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, and copied where two names stand for one."""
    found: dict[str, Tensor] = {}
    taken = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        found[name] = value.clone() if value.data_ptr() in taken else value
        taken.add(value.data_ptr())
    return found


def is_small_vocabulary(text_cfg: dict[str, Any]) -> bool:
    """Whether a text tower uses the cut vocabulary of ``clipx.models.tokenizer``."""
    foreign = text_cfg.get("hf_tokenizer_name") or text_cfg.get("hf_model_name")
    return not foreign and text_cfg.get("vocab_size", FULL_VOCABULARY) < FULL_VOCABULARY


@torch.no_grad()
def images_to_features(clip: CLIP, images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Embed uint8 images ``[B, 3, H, W]`` without gradient as rows float32 ``[B, F]``."""
    device = clip.device
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        return clip.encode_image(clip.normalize(images.to(device, non_blocking=True))).float()
