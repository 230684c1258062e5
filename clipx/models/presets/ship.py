"""Make a run's weights the ones that ship with clipx: ``python -m clipx.models.presets.ship RUN``.

Weights are stored in half precision, so that the package stays small; they are float32 again once loaded.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clipx.models.clip import CONFIG_FILE, WEIGHTS_FILE

CARD = """# tiny

The weights behind `model=tiny model.pretrained=tiny`: a CLIP of {parameters:.1f} million parameters for
40-pixel images, trained on scenes, clipx's procedural world, and on nothing else. It knows ten shapes in
ten colours, one or two in an image, and the English words for them; it knows nothing of photographs. It is
there so that every command that needs a trained model works at once, offline.

Made by

    {command}

with clipx {version}, torch {torch}, then stored in half precision. On held-out scenes (`clipx zeroshot`):
zero-shot top-1 {top1:.3f}, image-to-text recall@1 {recall:.3f}.

Licence: MIT, as clipx.
"""


def ship(run: Path) -> Path:
    """Copy the model of a completed pretrain run into this folder's ``tiny/``, with its model card.

    Raises:
        ValueError: the run's architecture is not that of the preset.
    """
    folder = Path(__file__).parent / "tiny"
    config = json.loads((run / "model" / CONFIG_FILE).read_text(encoding="utf-8"))
    preset = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if config["model_cfg"] != preset["model_cfg"]:
        raise ValueError(f"{run} holds another architecture than {folder}")
    tensors = load_file(run / "model" / WEIGHTS_FILE)
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file(halves, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    metrics = json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    card = CARD.format(
        parameters=sum(value.numel() for value in tensors.values()) / 1e6,
        command=(run / "command.txt").read_text(encoding="utf-8").strip(),
        version=environment["packages"]["clipx"],
        torch=torch.__version__,
        top1=metrics["top1"],
        recall=metrics["image_to_text_recall@1"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


if __name__ == "__main__":
    print(ship(Path(sys.argv[1])))
