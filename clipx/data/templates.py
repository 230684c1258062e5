"""Prompt templates and class names by data set, as the literature uses them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from clipx.errors import ClipxError, did_you_mean

SIMPLE = ("a photo of a {}.",)

# CLIP's own 18 for CIFAR-10 and CIFAR-100 (openai/CLIP, data/prompts.md).
_CIFAR = tuple(
    f"a {quality}photo of {article} {size}{{}}."
    for article in ("a", "the")
    for quality, size in (
        ("", ""),
        ("blurry ", ""),
        ("black and white ", ""),
        ("low contrast ", ""),
        ("high contrast ", ""),
        ("bad ", ""),
        ("good ", ""),
        ("", "small "),
        ("", "big "),
    )
)

# The hand-written prompts of CoOp (KaiyangZhou/CoOp, trainers/zsclip.py), one a data set.
_HAND_WRITTEN = {
    "caltech101": SIMPLE,
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "stanford_cars": SIMPLE,
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "sun397": SIMPLE,
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "ucf101": ("a photo of a person doing {}.",),
    "imagenet_coop": SIMPLE,
}


def _from_open_clip(name: str) -> tuple[str, ...]:
    from open_clip import zero_shot_metadata

    # open_clip holds its templates as functions; a function of "{}" gives the template back.
    return tuple(template("{}") for template in getattr(zero_shot_metadata, name))


_TEMPLATES: dict[str, tuple[str, ...] | Callable[[], tuple[str, ...]]] = {
    "simple": SIMPLE,
    "imagenet": lambda: _from_open_clip("OPENAI_IMAGENET_TEMPLATES"),
    "imagenet7": lambda: _from_open_clip("SIMPLE_IMAGENET_TEMPLATES"),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "digits": ('a photo of the number: "{}".',),
    **_HAND_WRITTEN,
}

TEMPLATE_NAMES = tuple(_TEMPLATES)
"""Names that ``templates`` knows."""


def templates(source: str | Iterable[str]) -> list[str]:
    """Prompt templates by name, from a text file, or as given.

    Args:
        source: one of ``TEMPLATE_NAMES``; a single template; a ``.txt`` file with one a line; or a list of
            templates.

    Returns:
        At least one template, each with exactly one ``{}`` for the class name.

    Raises:
        ClipxError: unknown name, no template, or a template without exactly one ``{}``.
    """
    if isinstance(source, str):
        if source in _TEMPLATES:
            known = _TEMPLATES[source]
            return list(known() if callable(known) else known)
        if "{" in source or "}" in source:
            found = [source]
        elif source.endswith(".txt"):
            found = _lines(Path(source), "templates")
        else:
            raise ClipxError(f"unknown templates {source!r}", hint=did_you_mean(source, _TEMPLATES))
    else:
        found = list(source)
    if not found:
        raise ClipxError(
            "templates is empty", hint='for example templates=["a photo of a {}."], or templates=simple'
        )
    for template in found:
        rest = template.replace("{}", "", 1) if isinstance(template, str) else "{"
        if rest == template or "{" in rest or "}" in rest:
            raise ClipxError(
                f"the template {template!r} does not have exactly one {{}}",
                hint='for example "a photo of a {}."',
            )
    return found


# Folder names of EuroSAT and Caltech101 as CoOp rewrites them (KaiyangZhou/CoOp, datasets/).
_REWRITTEN = {
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    },
    "caltech101": {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
}
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IMAGENETS = ("imagenet", "imagenet_folders", "imagenet_numbers", "imagenet_a", "imagenet_r")
"""ImageNet's 1,000 names in label order; by folder (n01440764); by number; those of ImageNet-A, -R."""

CLASS_NAME_SETS = (*_IMAGENETS, "cifar10", *_REWRITTEN)
"""Names that ``class_names`` knows."""


def class_name(text: str) -> str:
    """A folder or label name as a prompt says it: ``polar_bear`` -> ``polar bear``.

    Underscores and runs of spaces become one space; a catalogue number before a dot
    (``001.Black_footed_Albatross``) is dropped. Case is kept.
    """
    without_number = re.sub(r"^\d+\.(?=\D)", "", text)
    return " ".join(without_number.replace("_", " ").split()) or text


def class_names(
    source: str | Sequence[str] | Mapping[str, str], raw: Sequence[str] | None = None
) -> list[str]:
    """The names of the classes, in label order.

    Args:
        source: one of ``CLASS_NAME_SETS``; a text file with one name a line; a JSON or YAML file with a list,
            or a mapping from raw name to name; or a list or mapping itself. A mapping may leave classes out:
            those keep ``class_name(raw)``.
        raw: names as the data has them (folders, label values), in label order; None where the data has only
            numbers.

    Returns:
        One name a class.

    Raises:
        ClipxError: a file that cannot be read, a list of another length than ``raw``, a mapping of names that
            the data does not have, a repeated name, or a mapping where there are no raw names to map.
    """
    named = _read_names(source) if isinstance(source, str) else source
    if isinstance(named, Mapping):
        if raw is None:
            raise ClipxError(
                "class_names is a mapping, but the classes of this data have numbers only", hint="a list"
            )
        # A named set covers more than a user's subset may hold; a mapping of the user's own should fit.
        if not any(str(key) in raw for key in named):
            shown = ", ".join(map(str, raw[:10]))
            raise ClipxError(
                "class_names maps none of the classes of this data", hint=f"the data has: {shown}"
            )
        mapping = {str(key): str(value) for key, value in named.items()}
        names = [mapping.get(name, class_name(name)) for name in raw]
    else:
        names = [str(name).strip() for name in named]
        if raw is not None and len(names) != len(raw):
            shown = ", ".join(raw[:10]) + (", ..." if len(raw) > 10 else "")
            raise ClipxError(
                f"class_names has {len(names)} names, the data has {len(raw)} classes", hint=shown
            )
    repeated = (
        sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    )
    # OpenAI's names for ImageNet repeat a few of their own ("missile"); only a user's are held to be
    # distinct.
    if repeated and source not in _IMAGENETS:
        raise ClipxError(
            f"class_names repeats {', '.join(map(repr, repeated))}", hint="give every class its own name"
        )
    if "" in names:
        raise ClipxError("class_names has an empty name", hint="one name a class")
    return names


def _read_names(source: str) -> Sequence[str] | Mapping[str, str]:
    if source in _IMAGENETS:
        return _imagenet(source)
    if source == "cifar10":
        return _CIFAR10_NAMES
    if source in _REWRITTEN:
        return _REWRITTEN[source]
    path = Path(source)
    if path.suffix.lower() not in {".json", ".yaml", ".yml"}:
        if not path.suffix and not path.exists():
            raise ClipxError(
                f"unknown class_names {source!r}", hint=f"a file, or {did_you_mean(source, CLASS_NAME_SETS)}"
            )
        return _lines(path, "class_names")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
        else:
            from omegaconf import OmegaConf

            found = OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        raise ClipxError(f"class_names: there is no file {path}") from None
    except Exception as error:
        raise ClipxError(f"class_names: {path} cannot be read: {error}".splitlines()[0]) from None
    if not isinstance(found, list | dict):
        raise ClipxError(f"class_names: {path} holds neither a list nor a mapping")
    return found


def _imagenet(which: str) -> Sequence[str] | Mapping[str, str]:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    if which == "imagenet":
        return names
    if which == "imagenet_numbers":
        return {str(number): name for number, name in enumerate(names)}
    by_folder = dict(zip(_synsets("imagenet"), names, strict=True))
    if which == "imagenet_folders":
        return by_folder
    return [by_folder[folder] for folder in _synsets(which)]


def _synsets(which: str) -> list[str]:
    """WordNet ids of a subset of ImageNet, sorted, as timm has them."""
    import timm.data

    path = Path(timm.data.__file__).parent / "_info" / f"{which}_synsets.txt"
    return path.read_text(encoding="utf-8").split()


def _lines(path: Path, argument: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ClipxError(f"{argument}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ClipxError(f"{argument}: {path} cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
