"""``clipx scenes``: look at the built-in data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipx import config, config_errors, console
from clipx.errors import ClipxError


def contact_sheet(path: Path, count: int, overrides: Sequence[str], as_json: bool) -> None:
    """Draw ``count`` scenes with their captions into the image file ``path``.

    Raises:
        ClipxError: an override is not one of data, or the file cannot be written.
    """
    from hydra.core.config_store import ConfigStore

    for override in overrides:
        if not override.lstrip("+~").startswith("data."):
            raise ClipxError(
                f"{override!r} is not a setting of the data",
                hint="settings of the data look like data.seed=1",
            )
    ConfigStore.instance().store(name="scenes", node={"defaults": [{"data": "scenes"}, "_self_"]})
    with config_errors.translated("scenes", overrides, None):
        settings, _ = config.compose_prepared("scenes", overrides)
        config_errors.check_types("scenes", overrides, None)
    source = config.build(config.resolve(settings).data, split="train")

    from clipx.data.scenes.contact_sheet import draw

    try:
        draw(source, count, path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that no image format has
        raise ClipxError(
            f"cannot write {path}: {error}", hint="give a .png or .jpg in a folder that exists"
        ) from error
    if as_json:
        console.json_line({"path": str(path), "count": count})
    else:
        console.info(f"{count} scenes in {path}")
