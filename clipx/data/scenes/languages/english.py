"""English: articles, plurals, relations and the forms a caption may take."""

from collections.abc import Sequence

from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written

SHAPES = {
    "circle": ("circle", "circles"),
    "square": ("square", "squares"),
    "triangle": ("triangle", "triangles"),
    "star": ("star", "stars"),
    "heart": ("heart", "hearts"),
    "cross": ("cross", "crosses"),
    "ring": ("ring", "rings"),
    "diamond": ("diamond", "diamonds"),
    "crescent": ("crescent", "crescents"),
    "hexagon": ("hexagon", "hexagons"),
    "arrow": ("arrow", "arrows"),
    "drop": ("drop", "drops"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
RELATIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "front": "in front of",
    "behind": "behind",
}
GROUNDS = {"plain": "plain", "gradient": "gradient", "noise": "noisy", "textured": "textured"}
TONES = ("light ", "", "dark ")
TEMPLATES = ["a {}", "a picture of a {}", "an image of a {}", "this image shows a {}", "there is a {}"]
FRAMES = (
    "a picture of {}",
    "an image of {}",
    "this image shows {}",
    "there {is} {}",
    "you can see {}",
    "a drawing with {}",
    "{} can be seen here",
    "here {is} {}",
)


def colour_name(colour: str) -> str:
    """The colour by itself: ``red``."""
    return colour


def class_name(colour: str, shape: str) -> str:
    """Name of a class without an article: ``red circle``."""
    return f"{colour} {SHAPES[shape][0]}"


def with_article(words: str) -> str:
    """The words after a or an."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def phrase(what: Description, count: int = 1, definite: bool = False) -> str:
    """A noun phrase: ``a small red striped circle``, ``two blue stars``, ``the red circle``."""
    texture = what.texture if what.texture != "solid" else None
    noun = SHAPES[what.shape][count != 1] if what.shape else ("object", "objects")[count != 1]
    words = " ".join(word for word in (what.size, what.colour, texture, noun) if word)
    if definite:
        return f"the {words}"
    return with_article(words) if count == 1 else f"{NUMBERS[count]} {words}"


def join(parts: Sequence[str]) -> str:
    """The parts as a list: ``x``, ``x and y``, ``x, y and z``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def short(statements: Sequence[Statement]) -> str:
    """Everything that is there, or one relation, as a noun phrase."""
    first = statements[0]
    if isinstance(first, Related):
        return f"{phrase(first.first)} {RELATIONS[first.relation]} {phrase(first.second)}"
    return join([phrase(part.what, part.count) for part in statements if isinstance(part, There)])


def paraphrase(statements: Sequence[Statement], form: float) -> str:
    """The same as ``short`` in one of the forms; ``form`` in [0, 1) picks it."""
    first = statements[0]
    if isinstance(first, Related):
        whole, near, far = RELATIONS[first.relation], phrase(first.first), phrase(first.second)
        special = (f"{near} is {whole} {far}", f"{whole} {far} there is {near}")
        number = int(form * (len(FRAMES) + len(special)))
        if number >= len(FRAMES):
            return special[number - len(FRAMES)]
        verb = "is"
    else:
        number = int(form * len(FRAMES))
        verb = "are" if isinstance(first, There) and first.count > 1 else "is"
    return FRAMES[number].replace("{is}", verb).replace("{}", short(statements))


def long(statements: Sequence[Statement]) -> str:
    """Sentences that say everything."""
    there = [phrase(part.what, part.count) for part in statements if isinstance(part, There)]
    where = next((part for part in statements if isinstance(part, On)), None)
    ground = (
        f" on {with_article(f'{GROUNDS[where.kind]} {TONES[where.tone]}{where.tint}')} background"
        if where
        else ""
    )
    sentences = [f"a picture of {join(there)}{ground}"]
    for part in statements:
        if isinstance(part, Related):
            first, second = phrase(part.first, definite=True), phrase(part.second, definite=True)
            sentences.append(f"{first} is {RELATIONS[part.relation]} {second}")
        elif isinstance(part, Written):
            sentences.append(f'the words "{part.words}" are written on it')
    return ". ".join(sentences)
