"""Start a program under the clock of the benchmarks: ``python peers.py clipx|open_clip|clip_benchmark ...``.

The programs run as they are. Put in from outside are: the stamps of ``slices``; the tokenizer of a model that
has a small vocabulary, which open_clip cannot find by itself; and what keeps open_clip's reader of shards
working with today's webdataset (which marks the end of a shard by an empty record) and clip_benchmark's
accuracy with today's numpy (which makes no number of an array with one element).
"""

import functools
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

from slices import Stamped


def small_tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer of a model folder written by clipx."""
    from clipx.models.tokenizer import small_tokenizer

    text = json.loads((Path(folder) / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    return small_tokenizer(text["vocab_size"], text["context_length"])


def _tokenizer(name: str, **_: Any) -> Any:
    return small_tokenizer_of(name.removeprefix("local-dir:"))


def clipx() -> None:
    """The command, with its loader stamped."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.main does, before torch is loaded
    from clipx import cli
    from clipx.recipes import fitting

    loader = fitting.training_loader
    fitting.training_loader = lambda *args, **kwargs: Stamped(loader(*args, **kwargs), os.environ["STAMPS"])
    cli.main()


def open_clip_training(arguments: list[str]) -> None:
    """open_clip's training entry point, with its loader stamped."""
    import open_clip_train.data as readers
    import open_clip_train.main as entry

    readers.tar_file_expander = functools.partial(readers.tar_file_expander, eof_value=None)
    get_data = entry.get_data

    def stamped(*args: Any, **kwargs: Any) -> Any:
        data = get_data(*args, **kwargs)
        data["train"].dataloader = Stamped(data["train"].dataloader, os.environ["STAMPS"])
        return data

    entry.get_data, entry.get_tokenizer = stamped, _tokenizer
    entry.main(arguments)


def clip_benchmark() -> None:
    """The clip_benchmark command."""
    import open_clip

    # It would import scorers of captions, of which classification needs none.
    sys.modules.setdefault("clip_benchmark.metrics.captioning", types.ModuleType("captioning"))
    from clip_benchmark.cli import main
    from clip_benchmark.metrics import zeroshot_classification

    open_clip.get_tokenizer, zeroshot_classification.accuracy = _tokenizer, _accuracy
    main()


def _accuracy(output: Any, target: Any, topk: tuple[int, ...] = (1,)) -> list[float]:
    """clip_benchmark's top-k accuracy; its own asks numpy for what numpy no longer does."""
    hits = output.topk(max(topk), 1, True, True)[1].eq(target.view(-1, 1))
    return [hits[:, :k].any(1).float().mean().item() for k in topk]


if __name__ == "__main__":
    program = sys.argv.pop(1)
    if program == "clipx":
        clipx()
    elif program == "open_clip":
        open_clip_training(sys.argv[1:])
    elif program == "clip_benchmark":
        clip_benchmark()
    else:
        sys.exit(f"there is no program {program}")
