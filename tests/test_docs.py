"""README.md and docs/: what is made is current, what is linked exists, what is shown as a command works."""

import csv
import importlib.util
import io
import json
import re
import shlex
import sys
import tarfile
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

from clipx import cli, config, console
from clipx.run import Run

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = tuple(path.stem for path in config.conf_dir().glob("*.yaml"))


def builder():
    spec = importlib.util.spec_from_file_location("clipx_docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[str]:
    """The lines ``$ clipx ...`` of the console blocks of a page, also behind a launcher."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    lines = [re.sub(r"^(?:accelerate launch|torchrun|srun) .*?(?=clipx )", "", line) for line in lines]
    return [line for line in lines if line.startswith("clipx ")]


def files(page: Path) -> dict[str, str]:
    """The files that a page gives: "`mine/NAME`:" and below it a block with the content."""
    pattern = r"^`(mine/[^`]+)`:\n\n```\w+\n(.*?)^```"
    return dict(re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


SHOWN = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with everything that the pages speak of, small."""
    folder = tmp_path_factory.mktemp("place")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("CLIPX_CACHE", str(folder / "cache"))
    patch.delenv("CLIPX_OUTPUTS", raising=False)
    path = list(sys.path)
    for page in PAGES:
        for name, content in files(page).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
    _runs(folder / "outputs")
    _images(folder)
    yield folder
    sys.path[:] = path
    patch.undo()


def _runs(outputs: Path) -> None:
    for command, method, times in (
        ("pretrain", "infonce", 2),
        ("pretrain", "decoupled", 1),
        ("pretrain", "improved-baselines", 1),
        ("pretrain", "llip", 1),
        ("pretrain", "sharedclip", 1),
        ("adapt", "tip-adapter", 1),
    ):
        for _ in range(times):
            with Run.create(outputs, command, method, {"command": command, "method": method}) as run:
                run.path("model")
                run.results({"metrics": {"top1": 0.5}})
    # One that stopped, for --resume.
    status = outputs / "pretrain" / "infonce" / "v0002" / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "status": "interrupted"}))


def _images(folder: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    content = io.BytesIO()
    picture.save(content, "JPEG")
    names = [f"{number}.jpg" for number in range(40)]
    for where in ("photos/cat", "photos/dog", "pictures", "shards", "cifar10", "tables"):
        (folder / where).mkdir(parents=True)
    for name in names:
        for where in ("photos/cat", "photos/dog", "pictures"):
            (folder / where / name).write_bytes(content.getvalue())
    (folder / "photo.jpg").write_bytes(content.getvalue())
    pairs = [(name, f"picture {name}") for name in names]
    _csv(folder / "pictures" / "captions.csv", ("image", "caption"), pairs)
    beside = [(f"pictures/{name}", caption) for name, caption in pairs]
    _csv(folder / "pairs.csv", ("image", "caption"), beside)
    labelled = [(f"photos/{kind}/{name}", kind) for name in names for kind in ("cat", "dog")]
    for split in ("train", "test"):
        _csv(folder / f"{split}.csv", ("image", "species"), labelled)
    _parquet(folder, content.getvalue())
    for number in range(10):
        with tarfile.open(folder / "shards" / f"{number:04d}.tar", "w") as shard:
            for ending, part in (("jpg", content.getvalue()), ("txt", b"a picture")):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(part)
                shard.addfile(member, io.BytesIO(part))


def _csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _parquet(folder: Path, content: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": content, "path": None}] * 40
    captioned = pa.table({"image": images, "caption": [f"picture {number}" for number in range(40)]})
    pq.write_table(captioned, folder / "pairs.parquet")
    pq.write_table(captioned, folder / "tables" / "0.parquet")
    for split in ("train", "test"):
        table = pa.table({"image": images, "label": [number % 10 for number in range(40)]})
        pq.write_table(table, folder / "cifar10" / f"{split}.parquet")


def run(arguments: list[str], monkeypatch) -> int:
    """The exit code of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["clipx", *arguments])
    monkeypatch.setattr(console, "_quiet", False)
    app = typer.main.get_command(cli.app)
    return cli.run(lambda: app.main(args=arguments, prog_name="clipx", standalone_mode=False))


@pytest.mark.parametrize(
    ("page", "line"), SHOWN, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(SHOWN)]
)
def test_every_command_that_is_shown_works(page, line, place, monkeypatch, capsys):
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] not in RECIPES:
        code = run(arguments, monkeypatch)
        assert (code, capsys.readouterr().err.count("error:")) == (0, 0), line
        return
    shown = arguments if "--show-config" in arguments else [*arguments, "--show-config"]
    code = run(shown, monkeypatch)
    captured = capsys.readouterr()
    assert (code, captured.err.count("error:")) == (0, 0), f"{line}\n{captured.err}"
    if arguments[0] == "eval":
        assert len(captured.out.splitlines()) > 1, line  # the cells, and that is all of its configuration
        return
    if page.stem == "methods" or "--multirun" in arguments or "--resume" in arguments:
        return
    data = yaml.safe_load(captured.out)["data"]
    if _is_here(data, line):
        config.build(data, split="train")


def _is_here(data: dict, line: str) -> bool:
    """Whether the data of a command is on this machine."""
    if "benchmark" in data["_target_"]:
        return False
    if "webdataset" in data["_target_"] and importlib.util.find_spec("webdataset") is None:
        return False
    if "huggingface" in data["_target_"]:
        return data["path"] == "imagefolder" or Path(data["path"]).exists()
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_card_of_data_on_a_page_opens_its_source(page, place):
    for name in files(page):
        if name.startswith("mine/data/"):
            composed = config.compose("pretrain", [f"data={Path(name).stem}"], config_dir=place / "mine")
            config.import_from(place / "mine")
            for split in ("train", "validation", "test"):
                source = config.build(config.resolve(composed).data, split=split)
                assert hasattr(source, "stream") or isinstance(source.examples([0])[0], dict), name


def test_what_is_made_is_current():
    build = builder()
    readme = build.README.read_text(encoding="utf-8")
    hint = f"run `{build.COMMAND}` and commit what it changes"
    assert build.readme(readme) == readme, f"the tables of README.md are stale: {hint}"
    methods = build.METHODS.read_text(encoding="utf-8") if build.METHODS.exists() else ""
    assert build.methods_page() == methods, f"docs/methods.md is stale: {hint}"
    if build.RECORD.exists():
        assert build.claims_page() == build.CLAIMS.read_text(encoding="utf-8"), (
            f"docs/claims.md is stale: {hint}"
        )


def test_the_tables_name_every_command_and_method():
    build = builder()
    for name in typer.main.get_command(cli.app).commands:
        assert f"`clipx {name}`" in build.commands_table()
    for path in (ROOT / "conf" / "method").glob("*/*.yaml"):
        assert f"(docs/methods.md#{path.parent.name}-{path.stem})" in build.methods_table()
        assert f"\n### {path.stem}\n" in build.methods_page()


def test_output_is_pasted_below_its_command(tmp_path, monkeypatch):
    build = builder()
    readme = tmp_path / "README.md"
    before, after = "a\n<!-- output: pretrain -->\n```console\n$ clipx pretrain\n", "```\n<!-- end -->\nz\n"
    readme.write_text(f"{before}old\n{after}")
    monkeypatch.setattr(build, "README", readme)
    build.paste("pretrain", "top1  0.5\n\nrun  v0001\n")
    assert readme.read_text() == f"{before}top1  0.5\n\nrun  v0001\n{after}"
    with pytest.raises(SystemExit, match="no <!-- output: adapt -->"):
        build.paste("adapt", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        assert path.exists(), target
        if path.suffix == ".png":
            assert path.stat().st_size < 200_000, target
        elif anchor:
            assert anchor in _anchors(path.read_text(encoding="utf-8")), target


def _anchors(text: str) -> set[str]:
    """What a link may lead to on a page: its headings, and the anchors that it sets."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    names = {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in headings}
    return names | set(re.findall(r'<a id="([^"]+)">', prose))


def test_pages_name_no_path_of_a_machine():
    for page in PAGES:
        found = re.findall(r"(?:/home|/Users|/tmp|/root|/work)/\S*", page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"
