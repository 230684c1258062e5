"""German: gender, case and number of nouns, endings of adjectives, and the forms a caption may take."""

from collections.abc import Sequence

from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written

SHAPES = {
    "circle": ("Kreis", "Kreise", "m"),
    "square": ("Quadrat", "Quadrate", "n"),
    "triangle": ("Dreieck", "Dreiecke", "n"),
    "star": ("Stern", "Sterne", "m"),
    "heart": ("Herz", "Herzen", "n"),
    "cross": ("Kreuz", "Kreuze", "n"),
    "ring": ("Ring", "Ringe", "m"),
    "diamond": ("Raute", "Rauten", "f"),
    "crescent": ("Mondsichel", "Mondsicheln", "f"),
    "hexagon": ("Sechseck", "Sechsecke", "n"),
    "arrow": ("Pfeil", "Pfeile", "m"),
    "drop": ("Tropfen", "Tropfen", "m"),
}
"""Singular, plural, gender."""
DATIVE = {"Herz": "Herzen"}
"""Dative singular where it differs from the nominative."""
OBJECT = ("Gegenstand", "Gegenstände", "m")
COLOURS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "orange": "orangefarben",
    "purple": "violett",
    "pink": "rosafarben",
    "brown": "braun",
    "black": "schwarz",
    "white": "weiß",
    "gray": "grau",
    "cyan": "cyanblau",
}
SIZES = {"small": "klein", "medium": "mittelgroß", "large": "groß"}
TEXTURES = {"solid": "", "striped": "gestreift", "dotted": "gepunktet", "checkered": "kariert"}
NUMBERS = ("keine", "ein", "zwei", "drei", "vier", "fünf", "sechs")
RELATIONS = {
    "left": "links von",
    "right": "rechts von",
    "above": "über",
    "below": "unter",
    "front": "vor",
    "behind": "hinter",
}
"""All with the dative."""
INDEFINITE = {
    "nominative": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "accusative": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
    "dative": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
}
DEFINITE = {
    "nominative": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
    "accusative": {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e")},
    "dative": {"m": ("dem", "en"), "f": ("der", "en"), "n": ("dem", "en")},
}
"""Article and ending of the adjectives after it, by case and gender."""
PLURAL_ENDING = {"nominative": "e", "accusative": "e", "dative": "en"}
GROUNDS = {"plain": "einfarbigem", "gradient": "verlaufendem", "noise": "körnigem", "textured": "gemustertem"}
TONES = ("hell", "", "dunkel")
TEMPLATES = ["ein {}", "eine {}", "Bild: ein {}", "Bild: eine {}"]
FRAMES = (
    ("ein Bild mit {}", "dative"),
    ("eine Zeichnung mit {}", "dative"),
    ("dieses Bild zeigt {}", "accusative"),
    ("es gibt {}", "accusative"),
    ("man sieht {}", "accusative"),
    ("hier {is} {}", "nominative"),
    ("auf dem Bild {is} {}", "nominative"),
    ("zu sehen {is} {}", "nominative"),
)


def colour_name(colour: str) -> str:
    """The colour by itself: ``rot``."""
    return COLOURS[colour]


def class_name(colour: str, shape: str) -> str:
    """Name of a class as after the article ein or eine: ``roter Kreis``."""
    noun = SHAPES[shape]
    return f"{COLOURS[colour]}{INDEFINITE['nominative'][noun[2]][1]} {noun[0]}"


def phrase(what: Description, count: int = 1, definite: bool = False, case: str = "nominative") -> str:
    """A noun phrase: ``ein kleiner roter Kreis``, ``zwei blaue Sterne``, ``dem grünen Herz``."""
    noun = SHAPES[what.shape] if what.shape else OBJECT
    if count == 1:
        start, ending = (DEFINITE if definite else INDEFINITE)[case][noun[2]]
        name = DATIVE.get(noun[0], noun[0]) if case == "dative" else noun[0]
    else:
        start, ending, name = NUMBERS[count], PLURAL_ENDING[case], noun[1]
        if case == "dative" and not name.endswith("n"):
            name += "n"
    words = (SIZES.get(what.size or ""), COLOURS.get(what.colour or ""), TEXTURES.get(what.texture or ""))
    return " ".join([start, *(word + ending for word in words if word), name])


def join(parts: Sequence[str]) -> str:
    """The parts as a list: ``x``, ``x und y``, ``x, y und z``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} und {parts[-1]}"


def short(statements: Sequence[Statement], case: str = "nominative") -> str:
    """Everything that is there, or one relation, as a noun phrase in a case."""
    first = statements[0]
    if isinstance(first, Related):
        return f"{phrase(first.first, case=case)} {place(first.relation, first.second)}"
    return join([phrase(part.what, part.count, case=case) for part in statements if isinstance(part, There)])


def place(relation: str, what: Description, definite: bool = False) -> str:
    """Where something is: ``links von einem Kreis``, ``vor der Raute``."""
    return f"{RELATIONS[relation]} {phrase(what, definite=definite, case='dative')}"


def paraphrase(statements: Sequence[Statement], form: float) -> str:
    """The same as ``short`` in one of the forms; ``form`` in [0, 1) picks it."""
    first, verb = statements[0], "ist"
    if isinstance(first, Related):
        near, where = phrase(first.first), place(first.relation, first.second)
        special = (f"{near} befindet sich {where}", f"{where} ist {near}")
        number = int(form * (len(FRAMES) + len(special)))
        if number >= len(FRAMES):
            return special[number - len(FRAMES)]
    else:
        number = int(form * len(FRAMES))
        if len(statements) > 1 or (isinstance(first, There) and first.count > 1):
            verb = "sind"
    frame, case = FRAMES[number]
    return frame.replace("{is}", verb).replace("{}", short(statements, case))


def long(statements: Sequence[Statement]) -> str:
    """Sentences that say everything."""
    there = [phrase(part.what, part.count, case="dative") for part in statements if isinstance(part, There)]
    where = next((part for part in statements if isinstance(part, On)), None)
    ground = ""
    if where:
        ground = f" auf {GROUNDS[where.kind]} {TONES[where.tone]}{COLOURS[where.tint]}em Hintergrund"
    sentences = [f"ein Bild mit {join(there)}{ground}"]
    for part in statements:
        if isinstance(part, Related):
            where_text = place(part.relation, part.second, definite=True)
            sentences.append(f"{phrase(part.first, definite=True)} ist {where_text}")
        elif isinstance(part, Written):
            sentences.append(f'darauf steht "{part.words}"')
    return ". ".join(sentences)
