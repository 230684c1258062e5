"""One module a language, each with the same names: class_name, phrase, short, paraphrase, long, TEMPLATES."""

from types import ModuleType

from clipx.data.scenes.languages import english

LANGUAGES: dict[str, ModuleType] = {"en": english}
