"""Where in its tower a parameter of a CLIP sits: in the image tower, the text tower, and how deep."""

import re
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from clipx.errors import ClipxError

Part = Literal["image", "text", "scale", "comparison"]

_BLOCK = re.compile(
    r"transformer\.resblocks\.(\d+)\."  # open_clip's transformers
    r"|layer(\d+)\.(\d+)\."  # ModifiedResNet
    r"|transformer\.(?:encoder\.)?(?:layers?|block|h)\.(\d+)\."  # Hugging Face
)
_BOTTOM = re.compile(
    r"(?:conv\d|bn\d|class_embedding|positional_embedding|ln_pre|token_embedding|cls_emb)(?:\.|$)"
    r"|transformer\.(?:embeddings|embed_tokens|shared|wte|wpe)\."
)
_TOP = re.compile(
    r"(?:ln_post|proj|attnpool|attn_pool|ln_final|text_projection|head)(?:\.|$)"
    r"|transformer\.(?:final_layer_norm|LayerNorm|ln_f|norm|pooler)\."
)


def part_of(name: str) -> Part:
    """The part of an open_clip model that the parameter of this name belongs to; a bias of the logits counts
    as scale.
    """
    if name.startswith("visual."):
        return "image"
    if name.startswith("comparison."):
        return "comparison"
    return "scale" if name in ("logit_scale", "logit_bias") else "text"


def distances_from_top(model: nn.Module) -> dict[str, int]:
    """How many layers lie between each parameter of an open_clip model and the end of its tower.

    Args:
        model: with towers of open_clip (ViT, ModifiedResNet, text transformer), timm or Hugging Face.

    Returns:
        name -> distance. In a tower of L blocks the final norm and projection have 0, the last block 1, the
        first block L, embeddings and stem L + 1, mixture tokens as the class token. Scale and bias of the
        logits have 0, as what else belongs to the comparison. Every residual block of
        a ResNet counts; a final norm of timm's counts with the block before it.

    Raises:
        ClipxError: a parameter whose place is not known: it must not pass for one of the top.

    Source: the layer ids of BEiT's fine-tuning, as FT-CLIP and EVA-CLIP use them.
    """
    # Of a block that towers share both names count: it is as deep in either.
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    visual = model.get_submodule("visual")
    found = dict.fromkeys((name for name in names if part_of(name) in ("scale", "comparison")), 0)
    image = [name.removeprefix("visual.") for name in names if part_of(name) == "image"]
    own = _timm(visual, image) if hasattr(visual, "trunk") else _numbered(image)
    found |= {f"visual.{name}": distance for name, distance in own.items()}
    found |= {name: found["visual.class_embedding"] for name in names if name.startswith("comparison.extra_")}
    text = [name for name in names if part_of(name) == "text"]
    prefix = "text." if all(name.startswith("text.") for name in text) else ""
    own = _numbered([name.removeprefix(prefix) for name in text])
    return found | {prefix + name: distance for name, distance in own.items()}


def _numbered(names: Iterable[str]) -> dict[str, int]:
    names = list(names)
    blocks: dict[str, tuple[int, ...]] = {}
    for name in names:
        if match := _BLOCK.match(name):
            blocks[name] = tuple(int(number) for number in match.groups() if number is not None)
    order = {block: place for place, block in enumerate(sorted(set(blocks.values())))}
    found = {}
    for name in names:
        if name in blocks:
            found[name] = len(order) - order[blocks[name]]
        elif _BOTTOM.match(name):
            found[name] = len(order) + 1
        elif _TOP.match(name):
            found[name] = 0
        else:
            raise _unknown(name)
    return found


def _timm(visual: nn.Module, names: Iterable[str]) -> dict[str, int]:
    from timm.models._manipulate import group_parameters  # what timm's own layer decay uses

    trunk: Any = visual.get_submodule("trunk")
    if not hasattr(trunk, "group_matcher"):
        raise _unknown("trunk")
    groups = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    last = max(groups.values())
    found = {}
    for name in names:
        inside = name.removeprefix("trunk.")
        if inside == name:  # open_clip's projection on top
            found[name] = 0
        elif inside in groups:
            found[name] = last + 1 - groups[inside]
        else:
            raise _unknown(name)
    return found


def _unknown(name: str) -> ClipxError:
    return ClipxError(
        f"it is not known how deep in its tower {name!r} lies", hint="optim.layer_decay=null works with any"
    )
