"""A column of labels, numbers or text -> class indices and class names."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipx.data import templates as prompts
from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError

ClassNames = str | Sequence[str] | Mapping[str, str] | None


def class_label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names in the Hugging Face metadata of a Parquet or Arrow schema; None without."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


class LabelEncoder:
    """Maps label values to class indices.

    Numbers with class names are indices into them. Numbers without names, and texts, are numbered by their
    sorted distinct values; a list of names that holds every text gives the order instead.

    Args:
        columns: the label column of every part of the data (all splits, so that they agree).
        names: class names the data itself declares, in label order; None where it does not.
        class_names: the user's names (``clipx.data.templates.class_names``); None leaves the data's.
        where: what to call the data in an error.

    Attributes:
        classes: names in label order.

    Raises:
        ClipxError: labels that are neither numbers nor text, or class names that do not fit.
    """

    def __init__(
        self, columns: Sequence[pa.ChunkedArray], names: list[str] | None, class_names: ClassNames, where: str
    ) -> None:
        self._where = where
        plain = [plain_labels(column, where) for column in columns]
        kinds = {column.type for column in plain}
        if len(kinds) > 1:
            raise ClipxError(f"{where} has numbers for labels in one file and text in another")
        self._kind = kinds.pop()
        if names is None and class_names is not None and not isinstance(class_names, Mapping):
            candidate = prompts.class_names(class_names)
            values = self._distinct(plain)
            if pa.types.is_integer(self._kind):
                names, class_names = candidate, None
            elif set(values) <= set(candidate):
                self._keys: list[Any] = candidate
                self.classes = candidate
                return
        if names is not None and pa.types.is_integer(self._kind):
            self._keys = list(range(len(names)))
        elif names is not None:
            self._keys = names
        else:
            self._keys = self._distinct(plain)
            names = [str(key) for key in self._keys]
        if class_names is None:
            self.classes = [prompts.class_name(name) for name in names]
        else:
            self.classes = prompts.class_names(class_names, names)

    def __call__(self, column: pa.ChunkedArray, where: str) -> np.ndarray:
        """Encode a column.

        Returns:
            int64 [N]; ``UNLABELLED`` where the value is missing, blank or -1.

        Raises:
            ClipxError: naming the first row with a label outside of the classes, and its value.
        """
        column = plain_labels(column, where)
        found = pc.index_in(column, value_set=pa.array(self._keys, self._kind))
        encoded = pc.fill_null(found, UNLABELLED).to_numpy().astype(np.int64)
        nothing = "" if pa.types.is_large_string(self._kind) else UNLABELLED
        unlabelled = pc.fill_null(pc.equal(column, pa.scalar(nothing, self._kind)), True).to_numpy()
        wrong = np.flatnonzero((encoded == UNLABELLED) & ~unlabelled)
        if len(wrong):
            row = int(wrong[0])
            value = column[row].as_py()
            allowed = (
                f"0 to {len(self._keys) - 1}"
                if isinstance(value, int)
                else ", ".join(map(str, self._keys[:10]))
            )
            raise ClipxError(
                f"{where}: row {row} has the label {value!r}, not one of the {len(self.classes)} classes",
                hint=f"labels are {allowed}; -1 or an empty cell for none",
            )
        return encoded

    def _distinct(self, columns: Sequence[pa.ChunkedArray]) -> list[Any]:
        values = {value for column in columns for value in pc.unique(column).to_pylist()}
        return sorted(values - {None, "", UNLABELLED})


def plain_labels(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Labels as int64, or as text without spaces around it."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind):
        return column.cast(pa.int64())
    if pa.types.is_boolean(kind):
        return column.cast(pa.string()).cast(pa.large_string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise ClipxError(
                f"{where}: labels are not whole numbers", hint="is data.label_column right?"
            ) from None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    raise ClipxError(f"{where}: labels are of type {kind}", hint="one number or one text an image")
