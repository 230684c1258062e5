import pytest

from clipx.data.label_captions import label_captions
from clipx.errors import BadSample, ClipxError


class Items:
    """Captioned items of which every third has no label and number 4 cannot be used."""

    classes, templates = ["ant", "bee"], ["a {}."]

    def __len__(self):
        return 9

    def examples(self, indices):
        return [self.example(index) for index in indices]

    def example(self, index):
        if index == 4:
            return BadSample("gone")
        label = -1 if index % 3 == 0 else index % 2
        return {"image": None, "captions": [f"number {index}"], "label": label, "id": str(index)}


class Stream(Items):
    size = 9

    def stream(self, *, skip):
        return iter(self.examples(range(skip, 9)))


def test_only_labelled_items_are_left_and_without_their_captions():
    found = label_captions(Items())
    assert len(found) == 5
    examples = found.examples(range(5))
    assert [example["id"] for example in examples] == ["1", "2", "5", "7", "8"]
    assert all(example["captions"] == [] for example in examples)
    assert (found.classes, found.templates) == (Items.classes, Items.templates)


def test_a_stream_keeps_its_items():
    found = label_captions(Stream())
    examples = list(found.stream(skip=3))
    assert isinstance(examples[1], BadSample)
    assert [example["captions"] for example in examples if isinstance(example, dict)] == [[]] * 5
    assert found.size == 9
    assert not hasattr(found, "examples")


@pytest.mark.parametrize("classes", [None, [], ["one"]])
def test_data_without_classes(classes):
    class Bare(Items):
        pass

    Bare.classes = classes
    with pytest.raises(ClipxError, match="no labels to learn from"):
        label_captions(Bare())


def test_data_whose_items_have_no_label():
    class Unlabelled(Items):
        labels = (-1,) * 9

    with pytest.raises(ClipxError, match="no labels to learn from"):
        label_captions(Unlabelled())
