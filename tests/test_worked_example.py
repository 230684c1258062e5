"""The README's method of one's own, and its Python, exactly as they stand there, on a micro model."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file

from clipx import cli, console
from clipx.runs import find_run, read_metrics

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SMALL = [
    *("model=micro", "training.steps=4", "training.batch_size=8", "training.log_every=1", "loader.workers=0"),
    *("data.size=64", "data.validation_size=16", "data.test_size=16", "data.image_size=32"),
]


def section(heading: str) -> str:
    return re.split(r"^## ", README.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLIPX_OUTPUTS", raising=False)
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("decoupled", None)


def run(arguments: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["clipx", *arguments])
    app = typer.main.get_command(cli.app)
    return cli.run(lambda: app.main(args=arguments, prog_name="clipx", standalone_mode=False))


def test_the_method_of_ones_own(place, monkeypatch, capsys):
    text = section("Add a method")
    given = re.findall(r"^`(mine/[^`]+)`:\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert [Path(name).suffix for name, _ in given] == [".py", ".yaml"]
    assert sum(len(content.splitlines()) for _, content in given) < 40
    for name, content in given:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)

    printed = []
    for line in "".join(blocks(text, "console")).splitlines():
        arguments = shlex.split(line.removeprefix("$ "))[1:]
        small = {"pretrain": SMALL, "zeroshot": [*SMALL[5:], "loader.workers=0"]}.get(arguments[0], [])
        assert run([*arguments, *small], monkeypatch) == 0, f"{line}\n{capsys.readouterr().err}"
        printed.append(capsys.readouterr().out)
    assert "Decoupled Contrastive Learning" in printed[0]
    assert "completed" in printed[-1]

    trained = find_run(place / "outputs", "pretrain/decoupled/v0001")
    losses = [record["decoupled"] for record in read_metrics(trained) if "decoupled" in record]
    assert losses
    assert all(abs(loss) < 20 for loss in losses)
    assert load_file(trained / "model" / "open_clip_model.safetensors")
    assert (
        "top1"
        in json.loads((find_run(place / "outputs", "zeroshot/latest") / "results.json").read_text())[
            "metrics"
        ]
    )


def test_its_loss_is_infonce_without_the_pair_in_the_denominator():
    namespace: dict = {}
    exec(blocks(section("Add a method"), "python")[0], namespace)
    logits = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, 1.0], [1.5, 0.5, 4.0]], dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        others = sum(torch.exp(logits[i, j]) for j in range(3) if j != i)
        expected += -torch.log(torch.exp(logits[i, i]) / others) / 3
    torch.testing.assert_close(namespace["decoupled"](logits), expected)


def test_the_python_of_the_readme(place, micro, capsys):
    micro.save(place / "outputs" / "pretrain" / "infonce" / "v0001" / "model")
    Image.new("RGB", (40, 30), "red").save(place / "photo.jpg")
    namespace: dict = {}
    for block in blocks(section("Use a model elsewhere"), "python"):
        exec(block, namespace)
    assert capsys.readouterr().out.count("tensor(") >= 2
    ours = micro.encode_text(micro.tokenize(["a red circle", "a blue star"]))
    torch.testing.assert_close(namespace["text"], ours.detach(), atol=1e-5, rtol=0)
