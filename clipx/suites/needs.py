"""What a card's adapter needs, read from its source: importing it would load torch to list names."""

from __future__ import annotations

import ast
import functools
import importlib.util
from typing import Any

from clipx.cards import Card

DEFAULT = "features"


def needs_of(card: Card) -> str:
    """The ``needs`` of the class that the card's ``adapter`` names: features, pre_projection, images, ...

    Returns:
        The default of adapters, ``features``, where the class says nothing or cannot be found; what is wrong
        with it is told when it is built.
    """
    node = card.settings.get("adapter")
    target = node.get("_target_") if isinstance(node, dict) else None
    module, _, name = str(target or "").rpartition(".")
    return (_class_needs(module, name) if module else None) or DEFAULT


def _class_needs(module: str, name: str) -> str | None:
    classes, imported = _definitions(module)
    if name not in classes:
        where = imported.get(name)
        return _class_needs(*where) if where is not None else None
    for statement in classes[name].body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
        if any(isinstance(target, ast.Name) and target.id == "needs" for target in targets):
            return str(statement.value.value) if isinstance(statement.value, ast.Constant) else None
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id != name]
    return next((found for base in bases if (found := _class_needs(module, base))), None)


@functools.cache
def _definitions(module: str) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The classes that a module defines, and the names it imports with where they come from."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return {}, {}
        with open(spec.origin, encoding="utf-8") as file:
            body = ast.parse(file.read()).body
    except (ImportError, OSError, SyntaxError, ValueError):
        return {}, {}
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
    return classes, imported
