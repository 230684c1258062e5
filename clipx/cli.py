"""The command line: which commands there are, their options and help. What they do is in ``clipx.commands``.

Nothing here may import torch, hydra or open_clip: help must be instant.
"""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clipx import __version__, console
from clipx.errors import ClipxError, did_you_mean


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(context.get_help())
        raise typer.Exit()


# Typer's own --help of a group imports pydantic on the way to a command; a flag of ours does not.
Help = Annotated[
    bool,
    typer.Option("--help", "-h", callback=_print_help, is_eager=True, help="Show this message and exit."),
]

# Plain help: rich's renderer alone would take half of the time that help may take.
app = typer.Typer(
    name="clipx",
    help="Experiments on CLIP: pretrain, zero-shot and more, each result a numbered run.\n\n\b\n"
    "  clipx pretrain                     train a small CLIP on built-in data\n"
    "  clipx zeroshot model=ViT-B-32 model.pretrained=openai\n"
    "  clipx methods                      the published methods there are",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    add_help_option=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
runs_app = typer.Typer(
    rich_markup_mode=None,
    add_help_option=False,
    invoke_without_command=True,
    help="List the runs, show one, or compare several.\n\n\b\n"
    "  clipx runs\n  clipx runs show pretrain/infonce/latest\n"
    "  clipx runs compare infonce/v0001 siglip/v0001",
)

features_app = typer.Typer(
    rich_markup_mode=None,
    add_help_option=False,
    invoke_without_command=True,
    help="List the stored embeddings, check them, or make room.\n\n\b\n"
    "  clipx features\n  clipx features verify\n  clipx features prune --older 30",
)

TOGETHER = ("pretrain", "finetune", "adapt")
"""Commands whose work several processes share."""

OutputRoot = Annotated[
    str | None,
    typer.Option("--output-root", metavar="DIR", help="Where runs live (CLIPX_OUTPUTS, ./outputs)."),
]
ConfigDir = Annotated[
    str | None,
    typer.Option("--config-dir", metavar="DIR", help="A folder with cards and modules of your own."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, the rest on stderr.")]


def recipe(name: str, summary: str, *examples: str) -> None:
    """Add a command that runs ``clipx/recipes/<name>.py`` with ``conf/<name>.yaml``."""

    def command(
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="KEY=VALUE", hidden=True),
        ] = None,
        method: Annotated[
            str | None, typer.Option("--method", metavar="NAME", help=f"One of `clipx methods {name}`.")
        ] = None,
        multirun: Annotated[
            bool, typer.Option("--multirun", "-m", help="One run for each combination of values: seed=1,2,3.")
        ] = False,
        resume: Annotated[
            str | None,
            typer.Option(
                "--resume",
                metavar="RUN",
                help="Go on with a run that stopped: v0003, latest; auto: the newest of this configuration, "
                "else a new one.",
            ),
        ] = None,
        processes: Annotated[
            int | None,
            typer.Option(
                "--processes",
                min=1,
                metavar="N",
                help="Work in N processes of this machine, one a GPU.",
                hidden=name not in TOGETHER,
            ),
        ] = None,
        show_config: Annotated[
            bool, typer.Option("--show-config", help="Print the configuration and exit.")
        ] = False,
        config_dir: ConfigDir = None,
        output_root: OutputRoot = None,
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", help="Print the run's path and errors only.")
        ] = False,
        json: Json = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        from clipx.commands.recipe import Options, execute

        options = Options(
            command=name,
            overrides=list(overrides or []),
            method=method,
            multirun=multirun,
            resume=resume,
            processes=processes,
            show_config=show_config,
            config_dir=config_dir,
            output_root=output_root,
            quiet=quiet,
            json=json,
            debug=debug,
            argv=["clipx", *sys.argv[1:]],
        )
        raise typer.Exit(execute(options))

    app.command(name, help=_help(summary + _OVERRIDES, examples), short_help=summary)(command)


def _help(summary: str, examples: tuple[str, ...]) -> str:
    return f"{summary}\n\n\b\n" + "\n".join(f"  {example}" for example in examples)


_OVERRIDES = " KEY=VALUE changes the configuration, in Hydra's syntax; --show-config prints it."


recipe(
    "pretrain",
    "Train a CLIP on images and captions.",
    "clipx pretrain",
    "clipx pretrain --method siglip seed=1 optim.lr=5e-4",
    "clipx pretrain data=folder data.root=photos model=ViT-B-32 training.epochs=10",
)
recipe(
    "finetune",
    "Train a CLIP further on your own data.",
    "clipx finetune",
    "clipx finetune data=folder data.root=photos data.captions=captions.csv",
    "clipx finetune --method flyp data=folder data.root=photos",
)
recipe(
    "zeroshot",
    "Classify and retrieve with a CLIP as it is.",
    "clipx zeroshot",
    "clipx zeroshot model=pretrain/infonce/latest data=folder data.root=photos",
    "clipx zeroshot image=photo.jpg 'labels=[cat, dog]'",
)
recipe(
    "adapt",
    "Adapt a CLIP to your classes from a few labelled images each.",
    "clipx adapt",
    "clipx adapt --method tip-adapter data=folder data.root=photos shots=4",
    "clipx adapt --multirun --method zero-shot,tip-adapter shots=1,2,4,8,16",
)
recipe(
    "probe",
    "Look into a frozen CLIP: how its features classify, its modality gap.",
    "clipx probe",
    "clipx probe --method modality-gap",
    "clipx probe --method linear-probe-full data=folder data.root=photos",
)


@app.command(
    "eval",
    help=_help(
        "Run a grid of experiments, skip what is done, and report it as one table and page. "
        "KEY=a,b or KEY=[a,b] is an axis; any other KEY=VALUE is an override of every run.",
        (
            "clipx eval suite=adapters",
            "clipx eval 'method=[tip-adapter,gda]' 'shots=[1,4,16]' 'seed=[1,2,3]' data=digits",
            "clipx eval suite=zeroshot 'model=[tiny,pretrain/infonce/latest]'",
            "clipx eval suite=adapters launcher=joblib jobs=4",
            "clipx eval suite=claims method=gda",
            "clipx eval --compare adapters/v0001 adapters/v0002",
        ),
    ),
    short_help="Run a grid of experiments and report it as one table and page.",
)
def evaluate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", hidden=True),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAMES", help="One method, or several: a,b; or all.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try the cells again that failed.")] = False,
    comparing: Annotated[
        bool, typer.Option("--compare", help="Put two evals side by side, cell by cell: --compare RUN RUN.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the cells and their commands, and exit.")
    ] = False,
    config_dir: ConfigDir = None,
    output_root: OutputRoot = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the report's path and errors only.")
    ] = False,
    json: Json = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    from clipx.commands.eval import compare, execute
    from clipx.commands.recipe import Options

    options = Options(
        command="eval",
        overrides=list(overrides or []),
        method=method,
        config_dir=config_dir,
        show_config=show_config,
        debug=debug,
        quiet=quiet,
        json=json,
        output_root=output_root,
        argv=["clipx", *sys.argv[1:]],
    )
    raise typer.Exit(compare(options) if comparing else execute(options, retry=retry))


@app.command(
    "methods",
    help=_help(
        "List the published methods, or show one.",
        ("clipx methods", "clipx methods pretrain", "clipx methods show infonce"),
    ),
    short_help="List the published methods, or show one.",
)
def methods(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND | show NAME", hidden=True),
    ] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    from clipx.commands import methods

    match words or []:
        case []:
            methods.listing(None, config_dir, json)
        case ["show", name]:
            methods.show(name, config_dir, json)
        case ["show", *_]:
            raise ClipxError("`clipx methods show` takes one name", hint="clipx methods show infonce")
        case [command]:
            methods.listing(command, config_dir, json)
        case _:
            raise ClipxError("too many words", hint="clipx methods COMMAND, or clipx methods show NAME")


@runs_app.callback()
def runs(
    context: typer.Context, output_root: OutputRoot = None, json: Json = False, help: Help = False
) -> None:
    context.obj = {"root": output_root, "json": json}
    if context.invoked_subcommand is None:
        from clipx.commands import runs

        runs.listing(_root(context, None), json)


@runs_app.command(
    "show",
    help="Show one run: status, metrics, command line, configuration. A run is v0003, infonce/v0003, "
    "pretrain/infonce/latest, latest or a path.",
    short_help="Show one run.",
)
def show_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", hidden=True)],
    output_root: OutputRoot = None,
    json: Json = False,
) -> None:
    from clipx.commands import runs

    runs.show(_root(context, output_root), run, json or context.obj["json"])


@runs_app.command(
    "compare",
    help="Where the configurations of runs differ, and their metrics, side by side.",
    short_help="Put runs side by side.",
)
def compare_runs(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN", hidden=True)],
    output_root: OutputRoot = None,
    json: Json = False,
) -> None:
    from clipx.commands.runs import compare

    if len(runs) < 2:
        raise ClipxError("there is nothing to compare one run with", hint="clipx runs compare RUN RUN")
    compare(_root(context, output_root), runs, json or context.obj["json"])


app.add_typer(runs_app, name="runs")

Store = Annotated[
    str | None,
    typer.Option("--store", metavar="DIR", help="The store (CLIPX_CACHE/features, ~/.cache/clipx/features)."),
]


@features_app.callback()
def features(context: typer.Context, store: Store = None, json: Json = False, help: Help = False) -> None:
    context.obj = {"store": store, "json": json}
    if context.invoked_subcommand is None:
        from clipx.commands import features

        features.listing(features.store_root(store), json)


@features_app.command("verify", help="Check every file of every entry.", short_help="Check every entry.")
def verify_features(context: typer.Context, store: Store = None, json: Json = False) -> None:
    from clipx.commands import features

    features.verify(features.store_root(store or context.obj["store"]), json or context.obj["json"])


@features_app.command(
    "prune",
    help="Delete what is damaged or left over, and on demand what is old, or everything.",
    short_help="Delete what is not wanted.",
)
def prune_features(
    context: typer.Context,
    older: Annotated[
        float | None, typer.Option("--older", metavar="DAYS", help="Also what was written longer ago.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    store: Store = None,
    json: Json = False,
) -> None:
    from clipx.commands import features

    features.clean(
        features.store_root(store or context.obj["store"]),
        days=older,
        everything=everything,
        dry_run=dry_run,
        as_json=json or context.obj["json"],
    )


app.add_typer(features_app, name="features")


@app.command(
    "scenes",
    help=_help(
        "Draw a contact sheet of the built-in data. data.KEY=VALUE changes a setting of the data.",
        ("clipx scenes --grid scenes.png", "clipx scenes --grid scenes.png --count 12 data.seed=1"),
    ),
    short_help="Draw a contact sheet of the built-in data.",
)
def scenes(
    grid: Annotated[Path, typer.Option("--grid", metavar="FILE", help="The image to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", hidden=True),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="How many scenes.")] = 24,
    json: Json = False,
) -> None:
    from clipx.commands.scenes import contact_sheet

    contact_sheet(grid, count, overrides or [], json)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"clipx {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    help: Help = False,
) -> None:
    pass


def _root(context: typer.Context, given: str | None) -> Path:
    from clipx.run import output_root

    return output_root(given or context.obj["root"])


def main() -> None:
    """The console script: run the command, print a mistake as error and hint, exit with 2 for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± still gets its table
    # Threads that spin while they wait take the core that the data loader's process needs. Read once, when
    # torch is loaded; the user's own choice stands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(lambda: typer.main.get_command(app).main(prog_name="clipx", standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:
    """The exit code of a command, with its errors printed."""
    debug = "--debug" in sys.argv
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ClipxError as error:
        if debug:
            traceback.print_exc()
        if _is_heard():
            console.error(error.message, error.hint)
        return 2
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as stop:
        # The parser library turns a broken pipe into an exit of its own with code 1.
        if isinstance(stop.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message())
                return 0
            console.error(*_usage_mistake(error))
            return 2
        if debug:
            traceback.print_exc()
        console.error(f"{type(error).__name__}: {error}", "run again with --debug for the traceback")
        return 1


def _is_heard() -> bool:
    """Whether this process says what each process of its launch could say."""
    from clipx.run import is_main_process

    return is_main_process()


def _reader_gone() -> int:
    """The reader has seen enough (`clipx runs | head`); Python's complaint at exit is not wanted either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    return 0


def _usage_mistake(error: Any) -> tuple[str, str | None]:
    """What the parser complains about, with the nearest valid words."""
    message = str(error.format_message()).split("\n")[0].rstrip(".")
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else " ".join(["clipx", *sys.argv[1:2]])
    if match := re.match(r"No such command '([^']*)'", message):
        return f"no command {match[1]!r}", did_you_mean(match[1], context.command.commands)
    option = getattr(error, "option_name", None)
    if option and type(error).__name__ == "NoSuchOption":
        if "." in option or option.lstrip("-") in ("seed", "model", "data", "optim"):
            bare = option.lstrip("-")
            return f"no option {option!r}", f"settings have no dashes: {bare}=VALUE"
        valid = [
            name for parameter in context.command.params for name in parameter.opts if name.startswith("-")
        ]
        return f"no option {option!r}", did_you_mean(option, valid)
    return message, f"{path} --help"


if __name__ == "__main__":
    main()
