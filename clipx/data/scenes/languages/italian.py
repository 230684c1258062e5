"""Italian: gender and number of nouns, agreement of adjectives, and the forms a caption may take."""

from collections.abc import Sequence

from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written

SHAPES = {
    "circle": ("cerchio", "cerchi", "m"),
    "square": ("quadrato", "quadrati", "m"),
    "triangle": ("triangolo", "triangoli", "m"),
    "star": ("stella", "stelle", "f"),
    "heart": ("cuore", "cuori", "m"),
    "cross": ("croce", "croci", "f"),
    "ring": ("anello", "anelli", "m"),
    "diamond": ("rombo", "rombi", "m"),
    "crescent": ("mezzaluna", "mezzelune", "f"),
    "hexagon": ("esagono", "esagoni", "m"),
    "arrow": ("freccia", "frecce", "f"),
    "drop": ("goccia", "gocce", "f"),
}
OBJECT = ("oggetto", "oggetti", "m")
COLOURS = {
    "red": ("rosso", "rossa", "rossi", "rosse"),
    "green": ("verde", "verde", "verdi", "verdi"),
    "blue": ("blu", "blu", "blu", "blu"),
    "yellow": ("giallo", "gialla", "gialli", "gialle"),
    "orange": ("arancione", "arancione", "arancioni", "arancioni"),
    "purple": ("viola", "viola", "viola", "viola"),
    "pink": ("rosa", "rosa", "rosa", "rosa"),
    "brown": ("marrone", "marrone", "marroni", "marroni"),
    "black": ("nero", "nera", "neri", "nere"),
    "white": ("bianco", "bianca", "bianchi", "bianche"),
    "gray": ("grigio", "grigia", "grigi", "grigie"),
    "cyan": ("ciano", "ciano", "ciano", "ciano"),
}
"""Masculine, feminine, masculine plural, feminine plural."""
TEXTURES = {"solid": "", "striped": "a righe", "dotted": "a pois", "checkered": "a quadretti"}
BEFORE = {
    "small": ("piccolo", "piccola", "piccoli", "piccole"),
    "large": ("grande", "grande", "grandi", "grandi"),
}
AFTER = {"medium": "di media grandezza"}
NUMBERS = ("nessuno", "uno", "due", "tre", "quattro", "cinque", "sei")
RELATIONS = {
    "left": "a sinistra",
    "right": "a destra",
    "above": "sopra",
    "below": "sotto",
    "front": "davanti",
    "behind": "dietro",
}
LINKS = {"left": "di", "right": "di", "above": "", "below": "", "front": "a", "behind": ""}
GROUNDS = {"plain": "uniforme", "gradient": "sfumato", "noise": "granuloso", "textured": "a motivi"}
TONES = (" chiaro", "", " scuro")
TEMPLATES = ["un {}", "una {}", "immagine di un {}", "immagine di una {}"]
FRAMES = (
    "un'immagine con {}",
    "un disegno con {}",
    "questa immagine mostra {}",
    "{is} {}",
    "si {see} {}",
    "qui {is} {}",
    "una figura che mostra {}",
    "nell'immagine {is} {}",
)


def colour_name(colour: str) -> str:
    """The colour by itself: ``rosso``."""
    return COLOURS[colour][0]


def class_name(colour: str, shape: str) -> str:
    """Name of a class without an article: ``stella rossa``."""
    noun = SHAPES[shape]
    return f"{noun[0]} {COLOURS[colour][noun[2] == 'f']}"


def article(word: str, gender: str, definite: bool) -> str:
    """The article before a word, with its space unless elided: ``un ``, ``una ``, ``lo ``, ``l'``."""
    vowel = word[0] in "aeiou"
    hard = word[:2] in ("gn", "ps", "pn") or word[0] in "zxy" or (word[0] == "s" and word[1] not in "aeiou")
    if definite:
        return "l'" if vowel else "la " if gender == "f" else "lo " if hard else "il "
    if gender == "f":
        return "un'" if vowel else "una "
    return "uno " if hard else "un "


def phrase(what: Description, count: int = 1, definite: bool = False) -> str:
    """A noun phrase: ``una piccola stella rossa a righe``, ``due cerchi blu``, ``l'anello nero``."""
    noun = SHAPES[what.shape] if what.shape else OBJECT
    plural, gender = count != 1, noun[2]
    form = (gender == "f") + 2 * plural
    words = [
        BEFORE[what.size][form] if what.size in BEFORE else "",
        noun[plural],
        COLOURS[what.colour][form] if what.colour else "",
        TEXTURES[what.texture] if what.texture else "",
        AFTER.get(what.size or "", ""),
    ]
    text = " ".join(word for word in words if word)
    if count == 1:
        return article(text, gender, definite) + text
    return f"{NUMBERS[count]} {text}"


def place(relation: str, what: Description, definite: bool = False) -> str:
    """Where something is: ``a sinistra di un cerchio``, ``davanti al cerchio``, ``sopra una stella``."""
    whole, link = phrase(what, definite=definite), LINKS[relation]
    if definite and link:
        # di and a melt with the article: del, dello, della, dell'; al, allo, alla, all'.
        stem = "de" if link == "di" else "a"
        for bare, melted in (("il ", "l "), ("lo ", "llo "), ("la ", "lla "), ("l'", "ll'")):
            if whole.startswith(bare):
                return f"{RELATIONS[relation]} {stem}{melted}{whole[len(bare) :]}"
    return " ".join(part for part in (RELATIONS[relation], link, whole) if part)


def join(parts: Sequence[str]) -> str:
    """The parts as a list: ``x``, ``x e y``, ``x, y e z``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} e {parts[-1]}"


def short(statements: Sequence[Statement]) -> str:
    """Everything that is there, or one relation, as a noun phrase."""
    first = statements[0]
    if isinstance(first, Related):
        return f"{phrase(first.first)} {place(first.relation, first.second)}"
    return join([phrase(part.what, part.count) for part in statements if isinstance(part, There)])


def paraphrase(statements: Sequence[Statement], form: float) -> str:
    """The same as ``short`` in one of the forms; ``form`` in [0, 1) picks it."""
    first, is_word, see = statements[0], "c'è", "vede"
    if isinstance(first, Related):
        near, where = phrase(first.first), place(first.relation, first.second)
        special = (f"{near} si trova {where}", f"{where} c'è {near}")
        number = int(form * (len(FRAMES) + len(special)))
        if number >= len(FRAMES):
            return special[number - len(FRAMES)]
    else:
        number = int(form * len(FRAMES))
        if len(statements) > 1 or (isinstance(first, There) and first.count > 1):
            is_word, see = "ci sono", "vedono"
    return FRAMES[number].replace("{is}", is_word).replace("{see}", see).replace("{}", short(statements))


def long(statements: Sequence[Statement]) -> str:
    """Sentences that say everything."""
    there = [phrase(part.what, part.count) for part in statements if isinstance(part, There)]
    where = next((part for part in statements if isinstance(part, On)), None)
    ground = ""
    if where:
        ground = f" su uno sfondo {COLOURS[where.tint][0]}{TONES[where.tone]} {GROUNDS[where.kind]}"
    sentences = [f"un'immagine con {join(there)}{ground}"]
    for part in statements:
        if isinstance(part, Related):
            first = phrase(part.first, definite=True)
            sentences.append(f"{first} è {place(part.relation, part.second, definite=True)}")
        elif isinstance(part, Written):
            sentences.append(f'sopra c\'è scritto "{part.words}"')
    return ". ".join(sentences)
