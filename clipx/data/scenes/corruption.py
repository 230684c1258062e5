"""What web data suffers from, at a set rate: captions with damaged words, captions of another image."""

from dataclasses import dataclass

from clipx.data.scenes.draws import Draws


@dataclass(frozen=True, slots=True)
class Corruption:
    """What is wrong with the captions of an example: whose they are (None: its own), damaged or not."""

    from_index: int | None = None
    noisy: bool = False


def corruption(draws: Draws, index: int, size: int, noise: float, mismatched: float) -> Corruption:
    """Decide what is wrong with an example of a source of ``size`` examples; rates are in [0, 1]."""
    other = None
    if draws.uniform() < mismatched and size > 1:
        other = (index + 1 + draws.integer(size - 1)) % size
    return Corruption(other, draws.uniform() < noise)


def garbled(text: str, draws: Draws) -> str:
    """The text after one edit: a word lost, doubled or moved, or a letter lost; never as it was.

    Text without spaces (Chinese) is edited by the character.
    """
    spaced = " " in text
    words = text.split(" ") if spaced else list(text)
    place, way = draws.integer(len(words)), draws.integer(4)
    word = words[place]
    if way == 0 and len(words) > 1:
        del words[place]
    elif way == 1 and place + 1 < len(words) and words[place + 1] != word:
        words[place], words[place + 1] = words[place + 1], word
    elif way == 2 and len(word) > 2:
        cut = draws.integer(len(word))
        words[place] = word[:cut] + word[cut + 1 :]
    else:
        words.insert(place, word)
    return (" " if spaced else "").join(words)
