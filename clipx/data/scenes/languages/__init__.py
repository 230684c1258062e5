"""One module a language, each with: SHAPES, TEMPLATES, class_name, colour_name, short, paraphrase, long."""

from types import ModuleType

from clipx.data.scenes.languages import chinese, english, german, italian

LANGUAGES: dict[str, ModuleType] = {"en": english, "it": italian, "de": german, "zh": chinese}
"""By ISO 639-1 code. Every function takes the statements of ``scenes.statements``."""
