"""Where the towers of a CLIP can be changed: the layers of their blocks, by tower, block and role."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from clipx.errors import ClipxError, did_you_mean
from clipx.models.clip import CLIP
from clipx.models.surgery.split_qkv import attention_maps, fuse_qkv, split_qkv

TOWERS = ("image", "text")
TARGETS = ("q", "k", "v", "o", "mlp", "conv")
POSITIONS = ("all", "bottom", "mid", "up", "half-bottom", "half-up", "top1", "top2", "top3")


class Site(NamedTuple):
    """A layer of a model, ``nn.Linear`` or ``nn.Conv2d``, that can be replaced."""

    owner: nn.Module
    attribute: str

    @property
    def layer(self) -> Any:
        """The layer that is there now."""
        return getattr(self.owner, self.attribute)

    def put(self, layer: nn.Module) -> None:
        """Put another layer there."""
        setattr(self.owner, self.attribute, layer)


def find_sites(
    clip: CLIP,
    *,
    towers: Sequence[str] = TOWERS,
    targets: Sequence[str] = ("q", "k", "v"),
    blocks: str | Sequence[int] = "all",
) -> dict[str, Site]:
    """Split the attentions of the towers in place, and find the layers to be changed.

    A block is one of the equal parts that a tower stacks. In a ResNet it is a bottleneck; an attention pool
    is the last block of any tower that has one.

    Args:
        clip: the model; ``restore`` undoes the split.
        towers: ``image``, ``text`` or both.
        targets: ``q``, ``k``, ``v`` and ``o`` of the attention, ``mlp`` for other linear layers of a block,
            ``conv`` for the convolutions of a ResNet's.
        blocks: one of ``POSITIONS`` or numbers from 0; ``bottom``, ``mid`` and ``up`` are thirds of a tower.

    Returns:
        by names such as ``image.3.q.0``: tower, block, target, and which of those in the block.

    Raises:
        ClipxError: an unknown word, a block that does not exist, a tower without such a layer.
    """
    check_selection(towers, targets, blocks)
    found: dict[str, Site] = {}
    for tower in TOWERS:
        if tower in towers:
            root = _root(clip, tower)
            split_qkv(root)
            own = _of_tower(root, tower, targets, blocks)
            if not own:
                kind = type(getattr(root, "trunk", root)).__name__
                other = next(name for name in TOWERS if name != tower)
                raise ClipxError(
                    f"the {tower} tower of {clip.name} ({kind}) has no {' or '.join(targets)} there",
                    hint=f"towers=[{other}], other targets ({', '.join(TARGETS)}), or blocks=all",
                )
            found |= own
    return found


def check_selection(towers: Sequence[str], targets: Sequence[str], blocks: str | Sequence[int]) -> None:
    """Check what can be checked without a model.

    Raises:
        ClipxError: an unknown word, an empty list, a negative number.
    """
    for what, words, known in (("towers", towers, TOWERS), ("targets", targets, TARGETS)):
        if isinstance(words, str) or not words:
            raise ClipxError(f"{what} is {words!r}, must be a list", hint=f"some of: {', '.join(known)}")
        for word in words:
            if word not in known:
                raise ClipxError(f"{what} has {word!r}", hint=did_you_mean(str(word), known))
    if isinstance(blocks, str):
        if blocks not in POSITIONS:
            raise ClipxError(f"blocks is {blocks!r}", hint=did_you_mean(blocks, POSITIONS))
    elif not blocks or not all(type(number) is int and number >= 0 for number in blocks):
        raise ClipxError(
            f"blocks is {list(blocks)}, must be numbers of 0 or more", hint=f"or {', '.join(POSITIONS)}"
        )


def positions(blocks: str | Sequence[int], depth: int) -> list[int]:
    """The blocks that a word or a list means in a tower of some depth.

    Raises:
        ClipxError: a number that is not there.

    Source: Zanella and Ben Ayed 2024, the index tables of the code, here for any depth.
    """
    if not isinstance(blocks, str):
        outside = [number for number in blocks if number >= depth]
        if outside:
            raise ClipxError(f"there is no block {outside[0]}", hint=f"the tower has {depth}, counted from 0")
        return sorted(set(blocks))
    third, two_thirds, half = depth // 3, 2 * depth // 3, depth // 2
    top = int(blocks[3:]) if blocks.startswith("top") else 0
    ranges = {
        "all": range(depth),
        "bottom": range(third),
        "mid": range(third, two_thirds),
        "up": range(two_thirds, depth),
        "half-bottom": range(half),
        "half-up": range(half, depth),
    }
    return list(ranges.get(blocks, range(max(0, depth - top), depth)))


def restore(clip: CLIP) -> CLIP:
    """Put plain layers where changed ones are, and fuse what was split: an open_clip model again.

    A changed layer is any with a method ``merged`` that gives the plain one.
    """
    for module in list(clip.model.modules()):
        for name, child in module.named_children():
            if hasattr(child, "merged"):
                module.add_module(name, child.merged())  # type: ignore[operator]
    fuse_qkv(clip.model)
    return clip


def convolutional(clip: CLIP) -> bool:
    """Whether the image tower is a ResNet, most of which is not attention."""
    return isinstance(clip.model.visual, ModifiedResNet)


def _root(clip: CLIP, tower: str) -> nn.Module:
    model: Any = clip.model
    if tower == "image":
        return model.visual
    return model.text if hasattr(model, "text") else model.transformer


def _of_tower(
    root: nn.Module, tower: str, targets: Sequence[str], blocks: str | Sequence[int]
) -> dict[str, Site]:
    stack = _blocks(root)
    found: dict[str, Site] = {}
    try:
        wanted = positions(blocks, len(stack))
    except ClipxError as problem:
        raise ClipxError(f"the {tower} tower: {problem.message}", hint=problem.hint) from None
    for number in wanted:
        counts: dict[str, int] = {}
        for target, site in _layers(stack[number]):
            if target in targets:
                place = counts[target] = counts.get(target, -1) + 1
                found[f"{tower}.{number}.{target}.{place}"] = site
    return found


def _blocks(root: nn.Module) -> list[nn.Module]:
    """The parts of a tower that hold an attention: of nested stacks, those of the innermost."""
    if isinstance(root, ModifiedResNet):
        layers = (root.layer1, root.layer2, root.layer3, root.layer4)
        return [*(block for layer in layers for block in layer), root.attnpool]
    modules = dict(root.named_modules())
    found: dict[int, nn.Module] = {}
    for path, module in modules.items():
        if attention_maps(module):
            steps = path.split(".")
            stacked = [
                end
                for end in range(1, len(steps))
                if isinstance(modules[".".join(steps[:end])], nn.ModuleList | nn.Sequential)
            ]
            block = modules[".".join(steps[: stacked[-1] + 1])] if stacked else module
            found.setdefault(id(block), block)
    return list(found.values())


def _layers(block: nn.Module) -> list[tuple[str, Site]]:
    """The layers of a block with what each is, in the order in which they stand there."""
    roles = {
        id(getattr(*place)): target
        for module in block.modules()
        for target, place in attention_maps(module).items()
    }
    found = []
    for owner in block.modules():
        for name, layer in owner.named_children():
            if isinstance(layer, nn.Linear):
                found.append((roles.get(id(layer), "mlp"), Site(owner, name)))
            elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
                found.append(("conv", Site(owner, name)))
    return found
