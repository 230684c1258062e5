import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from test_encode import Photos

from clipx.errors import ClipxError
from clipx.features.encode import encode
from clipx.features.store import Writer, content_key, open_entry
from clipx.features.together import encode_together
from clipx.features.views import Chosen
from clipx.models.clip import CLIP
from clipx.models.loading import load

CASES = {
    "all": (Photos(), {}),
    "limited": (Photos(), {"limit": 9}),
    "chosen": (Chosen(Photos(), [11, 3, 5, 20, 1]), {"bank": "raw"}),
    "a share without an image": (Photos(size=8, bad=(4, 5, 6, 7)), {}),
    "fewer than processes": (Photos(size=1, bad=()), {}),
}
OPTIONS = {"split": "test", "batch_size": 4, "workers": 0}


def model():
    torch.manual_seed(0)
    return load("micro").eval()


def work(rank, size, folder):
    """One process: encode every case with the other, and note how many images went through its tower."""
    torch.set_num_threads(1)
    start = (Path(folder) / "rendezvous").absolute().as_uri()
    dist.init_process_group("gloo", init_method=start, rank=rank, world_size=size)
    clip, seen, before = model(), 0, CLIP.encode_image

    def counted(self, images, *args, **options):
        nonlocal seen
        seen += len(images)
        return before(self, images, *args, **options)

    CLIP.encode_image = counted
    found = {}
    for name, (source, options) in CASES.items():
        for time in ("", " again"):
            seen = 0
            encode_together(clip, source, root=Path(folder) / name, **OPTIONS, **options)
            found[name + time] = seen
    try:
        encode_together(clip, Photos(size=6, bad=range(6)), root=Path(folder) / "bad", **OPTIONS)
    except ClipxError as error:
        found["bad"] = error.message
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of two processes, and what each found."""
    folder = tmp_path_factory.mktemp("together")
    multiprocessing.spawn(work, args=(2, str(folder)), nprocs=2)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_the_entry_is_that_of_a_single_process(both, case, tmp_path):
    folder, _ = both
    source, options = CASES[case]
    clip = model()
    ours = encode(clip, source, root=folder / case, text=False, **OPTIONS, **options)
    assert not ours.encoded
    theirs = encode(clip, source, root=tmp_path, text=False, **OPTIONS, **options)
    torch.testing.assert_close(ours.image, theirs.image)
    for name in ("labels", "index", "ids", "texts", "skipped"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.pairs, theirs.pairs)
    assert len([path for path in (folder / case).iterdir() if path.is_dir()]) == 1  # no share is left


def test_each_process_encodes_its_half_once(both):
    _, (first, second) = both
    assert (first["all"], second["all"]) == (8, 11)  # of 0 to 10 less three, of 11 to 22 less one
    assert (first["chosen"], second["chosen"]) == (2, 2)
    assert first["all again"] == second["all again"] == 0


def test_an_error_is_that_of_every_process(both):
    _, (first, second) = both
    assert first["bad"] == second["bad"]
    assert first["bad"].startswith("no sample of this data can be used: truncated (6)")


def test_a_single_process_leaves_it_to_encode(tmp_path):
    encode_together(model(), Photos(), root=tmp_path, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_restarted_writer_holds_nothing(tmp_path):
    writer = Writer(tmp_path / "entry.partial")
    writer.append("image", np.ones((3, 2)))
    writer.record({"done": 3})
    writer.restart()
    writer.append("image", np.zeros((1, 2)))
    writer.complete({"a": 1})
    (tmp_path / "entry.partial").rename(tmp_path / content_key({"a": 1}))
    assert open_entry(tmp_path, content_key({"a": 1})).arrays["image"].tolist() == [[0, 0]]
