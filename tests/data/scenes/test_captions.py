"""Captions: true, unambiguous, in the right gender and case, in several forms."""

import re

import numpy as np
import pytest

from clipx.data.scenes.captions import plan, say, sayings
from clipx.data.scenes.draws import Draws
from clipx.data.scenes.languages import LANGUAGES, chinese, english, german, italian
from clipx.data.scenes.statements import Description, On, Related, There, Written, is_true, matching
from clipx.data.scenes.vocabulary import BACKGROUNDS, CAPTIONS, COLOURS, SHAPES, SIZES, TEXTURES, TINTS
from clipx.data.scenes.world import Background, Scene, Thing
from clipx.data.sources.scenes import Scenes
from clipx.errors import ClipxError

RED_CIRCLE, BLUE_STAR = Description("red", "circle"), Description("blue", "star")
LEFT = Thing("circle", "red", "small", "striped", 0.2, 0.5, 0.1, 0.0, 0)
RIGHT = Thing("star", "blue", "large", "solid", 0.7, 0.55, 0.2, 0.0, 1)
SCENE = Scene((LEFT, RIGHT), Background("plain", "gray", 0, 0, 0, 0))


@pytest.mark.parametrize("kind", CAPTIONS)
def test_every_statement_is_true_and_speaks_of_things_by_a_name_of_their_own(kind: str) -> None:
    source = Scenes(objects=[1, 5], overlap=0.4, words=0.3)
    for index in range(300):
        scene = source.scene(index)
        said = plan(scene, kind, Draws(1, index))
        assert said
        assert all(is_true(statement, scene) for statement in said)
        if not isinstance(said[0], Related):
            assert sum(part.count for part in said if isinstance(part, There)) == len(scene.things)
        for part in said:
            if isinstance(part, Related):
                assert len(matching(part.first, scene)) == len(matching(part.second, scene)) == 1


def test_statements_are_checked_against_the_scene() -> None:
    assert is_true(There(RED_CIRCLE), SCENE)
    assert not is_true(There(RED_CIRCLE, 2), SCENE)
    assert not is_true(There(Description("red", "circle", "large")), SCENE)
    assert is_true(There(Description(texture="striped")), SCENE)
    assert is_true(Related(RED_CIRCLE, "left", BLUE_STAR), SCENE)
    assert not is_true(Related(RED_CIRCLE, "right", BLUE_STAR), SCENE)
    assert not is_true(Related(RED_CIRCLE, "above", BLUE_STAR), SCENE)
    assert not is_true(Related(RED_CIRCLE, "front", BLUE_STAR), SCENE)
    assert not is_true(Related(RED_CIRCLE, "left", Description("green", "star")), SCENE)
    assert is_true(On("plain", "gray", 0), SCENE)
    assert not is_true(On("plain", "gray", 1), SCENE)
    assert not is_true(Written("red circle"), SCENE)
    assert not is_true([There(RED_CIRCLE), There(RED_CIRCLE, 2)], SCENE)


WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "a": 1, "an": 1}
SINGULAR = {word: shape for shape, forms in english.SHAPES.items() for word in forms}


def parsed(phrase: str) -> There:
    first, *words = phrase.split()
    size = next((word for word in words if word in SIZES), None)
    colour = next(word for word in words if word in COLOURS)
    texture = next((word for word in words if word in TEXTURES), None)
    return There(Description(colour, SINGULAR[words[-1]], size, texture), WORDS[first])


def test_short_english_parses_back_to_what_was_said() -> None:
    source = Scenes(objects=[1, 5], overlap=0.4)
    relations = {text: name for name, text in english.RELATIONS.items()}
    split = re.compile(" (" + "|".join(sorted(relations, key=len, reverse=True)) + ") ")
    for index in range(400):
        said = plan(source.scene(index), "short", Draws(2, index))
        text = say(said, "short", "en")
        if isinstance(said[0], Related):
            first, how, second = split.split(text)
            assert (Related(parsed(first).what, relations[how], parsed(second).what),) == said
        else:
            assert tuple(parsed(part) for part in re.split(", | and ", text)) == said


@pytest.mark.parametrize("language", LANGUAGES)
def test_different_statements_are_said_differently(language: str) -> None:
    things = [
        (There(Description(colour, shape, size, texture), count),)
        for colour in COLOURS
        for shape in SHAPES
        for size in (None, *SIZES)
        for texture in (None, "striped", "dotted", "checkered")
        for count in (1, 2, 3)
    ]
    assert len({say(said, "short", language) for said in things}) == len(things)
    related = [(Related(RED_CIRCLE, how, BLUE_STAR),) for how in english.RELATIONS]
    grounds = [
        (There(RED_CIRCLE), On(kind, tint, tone))
        for kind in BACKGROUNDS
        for tint in TINTS
        for tone in range(3)
    ]
    assert len({say(said, "short", language) for said in related}) == len(related)
    assert len({say(said, "long", language) for said in grounds}) == len(grounds)
    assert "red circle" in say((There(RED_CIRCLE), Written("red circle")), "long", language)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "said", [(There(RED_CIRCLE),), (There(RED_CIRCLE, 2),), (Related(RED_CIRCLE, "left", BLUE_STAR),)]
)
def test_a_paraphrase_has_six_forms_or_more(language: str, said: tuple) -> None:
    forms = {say(said, "paraphrase", language, form / 100) for form in range(100)}
    assert len(forms) >= 6
    assert not any("{" in form for form in forms)


def test_english() -> None:
    assert say((There(Description("orange", "star")),), "short", "en") == "an orange star"
    assert say((There(RED_CIRCLE, 2), There(BLUE_STAR)), "short", "en") == "two red circles and a blue star"
    assert say((There(RED_CIRCLE, 3),), "paraphrase", "en", 3.5 / 8) == "there are three red circles"
    full = Description("blue", "cross", "small", "striped")
    assert say((There(full, 2),), "short", "en") == "two small blue striped crosses"


def test_italian_agrees_in_gender_and_number() -> None:
    def it(*arguments: object, **options: object) -> str:
        return italian.phrase(Description(*arguments), **options)

    assert it("red", "star") == "una stella rossa"
    assert it("red", "circle") == "un cerchio rosso"
    assert it("white", "arrow", count=2) == "due frecce bianche"
    assert it("gray", "drop", count=3) == "tre gocce grigie"
    assert it("pink", "cross", count=2) == "due croci rosa"
    assert it("green", "ring", count=2) == "due anelli verdi"
    assert it("black", "cross", "small", "striped") == "una piccola croce nera a righe"
    assert it("yellow", "ring", definite=True) == "l'anello giallo"
    assert (
        italian.place("left", Description("red", "hexagon"), definite=True) == "a sinistra dell'esagono rosso"
    )
    assert italian.place("front", Description("red", "star"), definite=True) == "davanti alla stella rossa"
    assert italian.place("right", RED_CIRCLE) == "a destra di un cerchio rosso"
    said = (There(RED_CIRCLE, 2),)
    assert say(said, "paraphrase", "it", 3.5 / 8) == "ci sono due cerchi rossi"
    assert say((There(RED_CIRCLE),), "paraphrase", "it", 3.5 / 8) == "c'è un cerchio rosso"


def test_german_agrees_in_gender_case_and_number() -> None:
    def de(*arguments: object, **options: object) -> str:
        return german.phrase(Description(*arguments), **options)

    assert de("red", "circle") == "ein roter Kreis"
    assert de("red", "square") == "ein rotes Quadrat"
    assert de("red", "diamond") == "eine rote Raute"
    assert de("red", "circle", case="accusative") == "einen roten Kreis"
    assert de("red", "diamond", case="dative") == "einer roten Raute"
    assert de("black", "heart", case="dative") == "einem schwarzen Herzen"
    assert de("blue", "star", count=2, case="dative") == "zwei blauen Sternen"
    assert de("blue", "drop", count=2, case="dative") == "zwei blauen Tropfen"
    assert de("blue", "square", definite=True, case="dative") == "dem blauen Quadrat"
    assert de("green", "arrow", "small", "striped") == "ein kleiner grüner gestreifter Pfeil"
    assert say((There(RED_CIRCLE),), "paraphrase", "de", 4.5 / 8) == "man sieht einen roten Kreis"
    assert (
        say((Related(RED_CIRCLE, "left", BLUE_STAR),), "short", "de")
        == "ein roter Kreis links von einem blauen Stern"
    )


def test_chinese() -> None:
    assert chinese.phrase(BLUE_STAR, count=2) == "两个蓝色的星形"
    assert (
        say((Related(RED_CIRCLE, "left", BLUE_STAR),), "short", "zh")
        == "一个红色的圆形在一个蓝色的星形的左边"
    )


def test_languages_know_every_word() -> None:
    for grammar in LANGUAGES.values():
        assert set(grammar.SHAPES) == set(SHAPES)
        assert len({grammar.class_name(colour, shape) for colour in COLOURS for shape in SHAPES}) == 144
        assert all(template.count("{}") == 1 for template in grammar.TEMPLATES)


def test_templates_make_sentences_of_the_grammar() -> None:
    said = (There(RED_CIRCLE),)
    forms = {say(said, "paraphrase", "en", form / 100) for form in range(100)} | {say(said, "short", "en")}
    made = {template.format("red circle") for template in english.TEMPLATES}
    assert made <= forms


def test_every_object_has_a_caption_with_all_that_it_is():
    source = Scenes("train", objects=3, captions=["object", "short"], repeats=0.5, size=200, image_size=16)
    for index in range(50):
        example, scene = source[index], source.scene(index)
        *of_objects, whole = example["captions"]
        *places, none = example["caption_objects"]
        assert (none, example["caption_attributes"][-1]) == (-1, -1)
        described = [Description(each.colour, each.shape, each.size, each.texture) for each in scene.things]
        assert {described[place] for place in places} == {*described}
        assert len(of_objects) == len({*described}) == len({*of_objects})
        for text, place, count in zip(of_objects, places, example["caption_attributes"], strict=False):
            what = described[place]
            assert text == english.phrase(what, len(matching(what, scene)))
            assert count == 4 - (what.texture == "solid")
        assert whole == Scenes("train", objects=3, repeats=0.5, size=200, image_size=16)[index]["captions"][0]


def test_a_partial_caption_names_few_attributes_more_often_than_many():
    source = Scenes("train", objects=1, captions="partial", textures=["dotted"], size=2000, image_size=16)
    counts = []
    for index in range(600):
        scene = source.scene(index)
        (said,) = sayings(scene, ["partial"], source._draws("captions", index))
        assert is_true(said.statements, scene)
        (what,) = (statement.what for statement in said.statements)
        named = sum(value is not None for value in (what.colour, what.shape, what.size, what.texture))
        assert named == said.attributes
        counts.append(named)
    shares = np.bincount(counts, minlength=5)[1:] / len(counts)
    np.testing.assert_allclose(shares, np.array([12, 6, 4, 3]) / 25, atol=0.07)
    assert source[0]["caption_attributes"] == counts[:1]


def test_negatives_of_partial_captions_are_refused():
    with pytest.raises(ClipxError, match="a partial caption may not say"):
        Scenes("train", captions="partial", negatives=True)
