"""Noise in captions and pairs: at the rates set, in train alone, and known."""

import numpy as np
import pytest

from clipx.data.scenes.corruption import garbled
from clipx.data.scenes.draws import Draws
from clipx.data.sources.scenes import Scenes


def test_caption_noise_has_its_rate_and_is_known() -> None:
    clean, noisy = Scenes(objects=1), Scenes(objects=1, caption_noise=0.3)
    wrong = []
    for index, (first, second) in enumerate(
        zip(clean.examples(range(800)), noisy.examples(range(800)), strict=True)
    ):
        differs = first["captions"] != second["captions"]
        assert differs == noisy.corruption(index).noisy
        assert np.array_equal(first["image"], second["image"])
        wrong.append(differs)
    assert abs(np.mean(wrong) - 0.3) < 0.05


def test_mismatched_pairs_have_their_rate_and_are_known() -> None:
    clean, mixed = Scenes(), Scenes(mismatched=0.25)
    origin = [mixed.corruption(index).from_index for index in range(800)]
    assert abs(np.mean([index is not None for index in origin]) - 0.25) < 0.05
    for index, other in enumerate(origin[:200]):
        assert other != index
        assert mixed[index]["captions"] == clean[index if other is None else other]["captions"]
        assert mixed[index]["label"] == clean[index]["label"]


def test_held_out_captions_stay_clean() -> None:
    clean, mixed = Scenes("test"), Scenes("test", mismatched=1.0, caption_noise=1.0)
    for first, second in zip(clean.examples(range(50)), mixed.examples(range(50)), strict=True):
        assert first["captions"] == second["captions"]


@pytest.mark.parametrize("text", ["a red circle", "x", "圆", "一个红色的圆形", "a a a", "ab"])
def test_garbled_text_always_differs(text: str) -> None:
    made = {garbled(text, Draws(9, index)) for index in range(60)}
    assert text not in made
    assert "" not in made
