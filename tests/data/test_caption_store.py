import multiprocessing
import pickle

import torch

from clipx.data.caption_store import CaptionStore, default_folder


class Counting:
    """Embeds captions as their length, and counts which it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, captions):
        self.asked += captions
        return torch.tensor([[len(each), 1.0] for each in captions])


def test_each_caption_is_embedded_once_also_in_another_process(tmp_path):
    first, again = Counting(), Counting()
    store = CaptionStore("one", 2, tmp_path)
    found = store.filled(["aa", "b", "aa"], first)
    assert found.tolist() == [[2, 1], [1, 1], [2, 1]]
    assert first.asked == ["aa", "b"]
    assert store.filled(["b", "ccc"], first).tolist() == [[1, 1], [3, 1]]
    assert first.asked == ["aa", "b", "ccc"]
    assert CaptionStore("one", 2, tmp_path).filled(["ccc", "aa", "d"], again).tolist()[:2] == [[3, 1], [2, 1]]
    assert again.asked == ["d"]


def test_encoders_do_not_see_each_others_vectors(tmp_path):
    CaptionStore("one", 2, tmp_path).filled(["aa"], Counting())
    other = Counting()
    CaptionStore("two", 2, tmp_path).filled(["aa"], other)
    assert other.asked == ["aa"]


def write(store, start):
    store.filled([f"{number}" for number in range(start, start + 40)], Counting())


def test_loader_processes_write_at_the_same_time(tmp_path):
    store = CaptionStore("one", 2, tmp_path)
    store.filled(["of the parent"], Counting())
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(store, 20 * place)) for place in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    left = Counting()
    CaptionStore("one", 2, tmp_path).filled([*(f"{number}" for number in range(80)), "of the parent"], left)
    assert left.asked == []


def test_a_store_that_is_broken_or_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "one.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "file").write_text("")
    for store in (CaptionStore("one", 2, tmp_path), CaptionStore("one", 2, tmp_path / "file")):
        asked = Counting()
        assert store.filled(["aa", "b"], asked).tolist() == [[2, 1], [1, 1]]
        assert store.filled(["aa"], asked).tolist() == [[2, 1]]
        assert asked.asked == ["aa", "b"]


def test_a_vector_of_another_width_is_made_anew(tmp_path):
    CaptionStore("one", 2, tmp_path).filled(["aa"], Counting())
    found = CaptionStore("one", 3, tmp_path).filled(["aa"], lambda captions: torch.ones(len(captions), 3))
    assert found.tolist() == [[1, 1, 1]]


def test_it_travels_to_another_process(tmp_path):
    store = CaptionStore("one", 2, tmp_path)
    store.filled(["aa"], Counting())
    asked = Counting()
    assert pickle.loads(pickle.dumps(store)).filled(["aa"], asked).tolist() == [[2, 1]]
    assert asked.asked == []


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "captions"
    monkeypatch.delenv("CLIPX_CACHE")
    assert default_folder().parts[-3:] == (".cache", "clipx", "captions")
