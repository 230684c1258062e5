"""The parts of the documentation that are made, not written.

python docs/build.py                                   the tables of README.md, and docs/methods.md
python docs/build.py figures                           docs/figures/*.png
python docs/build.py claims RUN                        docs/claims.json and .md, with what RUN measured, a run
                                                       of clipx eval suite=claims, and then the tables
python docs/build.py objectives RUN                    docs/objectives.md, with the table of RUN, a run of
                                                       clipx eval suite=objectives
clipx pretrain | python docs/build.py output pretrain  what a command prints, pasted where README.md has
                                                       <!-- output: pretrain --> and <!-- end -->
"""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import typer

from clipx.cards import Card, list_cards
from clipx.cli import app
from clipx.config import conf_dir
from clipx.reports.claims import ClaimOutcome, page, read_claims
from clipx.suites.claims import claim_of
from clipx.suites.outcomes import hardware

ROOT = Path(__file__).resolve().parent.parent
README, METHODS, FIGURES = ROOT / "README.md", ROOT / "docs" / "methods.md", ROOT / "docs" / "figures"
CLAIMS, RECORD = ROOT / "docs" / "claims.md", ROOT / "docs" / "claims.json"
OBJECTIVES = ROOT / "docs" / "objectives.md"
COMMAND = "python docs/build.py"


def commands_table() -> str:
    """The commands of the command line with their one-line help."""
    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows: list[list[object]] = [
        [f"`clipx {name}`", command.get_short_help_str(limit=200)] for name, command in found.items()
    ]
    return _table(["command", "what it does"], rows)


def methods_table() -> str:
    """The method cards with their citations."""
    rows = [
        [f"`{card.command}`", f"[`{card.name}`](docs/methods.md#{_anchor(card)})", _cited(card), card.year]
        for card in list_cards([conf_dir()])
    ]
    return _table(["command", "method", "paper", "year"], rows)


def methods_page() -> str:
    """docs/methods.md: every card with its description, commands, citation, claim and settings."""
    parts = [
        "# Methods",
        f"Made from the cards in `conf/method/` by `{COMMAND}`; do not edit.",
        "A claim is what must hold at small scale for the implementation to count as right; what became "
        "of it is in [claims.md](claims.md).",
    ]
    outcomes = {(each.command, each.method): each for each in _outcomes()}
    command = None
    for card in list_cards([conf_dir()]):
        if card.command != command:
            command = card.command
            parts.append(f"## clipx {command}")
        parts += _section(card, outcomes.get((card.command, card.name)))
    return "\n\n".join(parts) + "\n"


def readme(text: str) -> str:
    """README.md with its tables made anew."""
    for name, content in (("commands", commands_table()), ("methods", methods_table())):
        text = _between(text, f"<!-- begin: {name} -->", f"<!-- end: {name} -->", content)
    return text


def figures() -> None:
    """Draw the contact sheets that the pages show."""
    from PIL import Image

    from clipx.data.scenes.contact_sheet import draw
    from clipx.data.sources.scenes import Scenes

    styles = ["photo-noise", "sketch", "inverted", "low-light", "blur", "occlusion"]
    sheets = {
        "scenes": Scenes(image_size=168, seed=3),
        "negatives": Scenes(image_size=168, seed=5, objects=(1, 4), relations=1.0, negatives=True),
        "styles": Scenes(image_size=168, seed=5, objects=(1, 2), style=styles),
    }
    FIGURES.mkdir(exist_ok=True)
    for name, source in sheets.items():
        path = draw(source, 12, FIGURES / f"{name}.png")
        with Image.open(path) as sheet:
            # Median cut alone loses the rarer colours, which are what the captions speak of.
            sheet.quantize(256, kmeans=2).save(path, optimize=True)


def paste(name: str, printed: str) -> None:
    """Put what a command printed below the command, in the README's block of that name."""
    text = README.read_text(encoding="utf-8")
    start, end = f"<!-- output: {name} -->", "<!-- end -->"
    if start not in text:
        raise SystemExit(f"README.md has no {start}")
    block = text.split(start, 1)[1].split(end, 1)[0]
    command = re.search(r"\$ .*", block)
    if command is None:
        raise SystemExit(f"the block after {start} has no line that starts with $")
    block = f"```console\n{command[0]}\n{printed.rstrip()}\n```"
    README.write_text(_between(text, start, end, block), encoding="utf-8")


def claims(run: Path) -> None:
    """Take over what a run of ``clipx eval suite=claims`` measured; outcomes of methods that are gone go."""
    cards = {(card.command, card.name): card for card in list_cards([conf_dir()])}
    # Where the run was written is of no interest here, and a path of somebody's machine.
    new = [
        replace(each, command_line=re.sub(r" --output-root[ =]\S+", "", each.command_line))
        for each in read_claims(run / RECORD.name)
    ]
    known = {(each.command, each.method): each for each in [*_outcomes(), *new]}
    kept = [known[key] for key in sorted(known) if key in cards]
    RECORD.write_text(
        json.dumps([asdict(each) for each in kept], indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    CLAIMS.write_text(claims_page(), encoding="utf-8")


def objectives(run: Path) -> None:
    """Take over the table that a run of ``clipx eval suite=objectives`` wrote."""
    title, _, table = (run / "table.md").read_text(encoding="utf-8").partition("\n")
    command = re.sub(
        r" --output-root[ =]\S+", "", (run / "command.txt").read_text(encoding="utf-8").splitlines()[0]
    )
    ended = json.loads((run / "status.json").read_text(encoding="utf-8"))["ended"][:10]
    parts = [
        title,
        f"Made by `{COMMAND} objectives RUN` from `{command}` on {ended}, {hardware()}; do not edit.",
        "All methods train the same towers on the same scenes, for as many steps of as many pairs. Methods "
        "that look at several views of a pair pay in time (`images_per_second` counts pairs, and where cells "
        "run side by side depends on the neighbour), not in steps; "
        "what a step of each should cost, and does, is in [performance.md](performance.md).",
        table.strip(),
    ]
    OBJECTIVES.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def claims_page() -> str:
    """docs/claims.md: every claim that was put to the test, with what became of it."""
    return page(_outcomes()).replace(
        "\n\n", f"\n\nMade from `docs/{RECORD.name}` by `{COMMAND}`; do not edit.\n\n", 1
    )


def _outcomes() -> list[ClaimOutcome]:
    return read_claims(RECORD) if RECORD.exists() else []


def _section(card: Card, outcome: ClaimOutcome | None) -> list[str]:
    raw = card.path.read_text(encoding="utf-8")
    prose, commands = _comment(raw)
    parts = [
        f'<a id="{_anchor(card)}"></a>',
        f"### {card.name}",
        *prose[:1],
        f"{_cited(card)} ({card.year}).",
    ]
    if "claim" in card.card:
        claim = claim_of(card)
        said = f"Claim: {claim.statement if claim else ''}."
        if outcome is None:
            parts.append(f"{said} Not measured yet.")
        elif claim is None or outcome.statement != claim.statement:
            parts.append(f"{said} Not measured since it was changed.")
        else:
            found = ""
            if outcome.difference is not None:
                found = f": difference {outcome.difference:+.3f} ({outcome.low:+.3f} to {outcome.high:+.3f})"
            parts.append(f"{said} Measured on {outcome.date}: {outcome.verdict}{found}.")
    if commands:
        parts.append("```console\n" + "\n".join(f"$ {line}" for line in commands) + "\n```")
    parts += prose[1:]
    settings = _settings(raw)
    if settings:
        parts.append(f"```yaml\n{settings}\n```")
    return parts


def _comment(raw: str) -> tuple[list[str], list[str]]:
    """The paragraphs and the command lines of the comment that opens a card."""
    paragraphs: list[str] = [""]
    commands = []
    for line in raw.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        text = line[1:].strip()
        if text.startswith("clipx "):
            commands.append(text)
        elif text:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
        elif paragraphs[-1]:
            paragraphs.append("")
    return [_escaped(paragraph) for paragraph in paragraphs if paragraph], commands


def _settings(raw: str) -> str:
    """What a card sets, with its comments: all of it but the opening comment and the ``card:`` section."""
    kept: list[str] = []
    inside = True  # of the opening comment or of the section
    for line in raw.splitlines():
        if line.startswith("card:") or (inside and line.startswith("#")):
            inside = True
        elif line and not line[0].isspace():
            inside = False
        if not inside:
            kept.append(line)
    return "\n".join(kept).strip()


def _cited(card: Card) -> str:
    url = card.card.get("url")
    return f"[{_escaped(card.title)}]({url})" if url else _escaped(card.title)


def _anchor(card: Card) -> str:
    return f"{card.command}-{card.name}"


def _escaped(text: str) -> str:
    return re.sub(r"([*_<>|])", r"\\\1", text)


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _between(text: str, start: str, end: str, content: str) -> str:
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"README.md lacks {start} or {end} after it")
    return f"{before}{start}\n{content}\n{end}{after}"


def main(words: list[str]) -> None:
    match words:
        case []:
            README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
            METHODS.write_text(methods_page(), encoding="utf-8")
            if RECORD.exists():
                CLAIMS.write_text(claims_page(), encoding="utf-8")
        case ["claims", run]:
            claims(Path(run))
            main([])
        case ["objectives", run]:
            objectives(Path(run))
        case ["figures"]:
            figures()
        case ["output", name]:
            paste(name, sys.stdin.read())
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
