"""What is printed: plain when piped, drawn on a terminal, JSON that any parser reads."""

import io
import json
import math

import numpy as np
import pytest

from clipx import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_piped_table_is_aligned_plain_text(capsys):
    console.table(["name", "n"], [["a", 1], ["long name", 12.34567]], right=["n"])
    assert capsys.readouterr().out == "name           n\na              1\nlong name  12.35\n"


def test_a_table_on_a_terminal_is_drawn_and_takes_brackets_as_text(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    console.table(["name", "value"], [["[red]", None]])
    assert "[red]" in screen.getvalue()
    assert "─" in screen.getvalue()


def test_many_names_are_counted():
    names = list("abcdefghij")
    assert console.listed(names) == "a, b, c, d, e, f, g, h and 2 more"
    assert console.listed(names[:8]) == "a, b, c, d, e, f, g, h"
    assert console.listed([]) == ""


def test_intervals_stand_beside_their_metric(capsys):
    console.metrics_table({"top1": 0.91234, "top1_ci": 0.0123, "lonely_ci": 1.0, "n": 3})
    assert capsys.readouterr().out.splitlines() == [
        "metric     value",
        "top1       0.9123 ± 0.012",
        "lonely_ci  1",
        "n          3",
    ]
    console.metrics_table({})
    assert capsys.readouterr().out == ""


def test_errors_are_coloured_only_on_a_terminal(monkeypatch, capsys):
    console.error("no data", "give some")
    console.error("alone")
    assert capsys.readouterr().err == "error: no data\nhint: give some\nerror: alone\n"
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    console.error("no data")
    assert "\033[1;31merror:\033[0m no data" in screen.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    console.warn("careful")
    assert screen.getvalue().endswith("warning: careful\n")


def test_quiet_silences_notes_but_not_warnings(capsys):
    console.info("working")
    console.configure(quiet=True)
    assert console.quiet()
    console.info("still working")
    console.warn("careful")
    console.stderr().print("progress")
    assert capsys.readouterr().err == "working\nwarning: careful\n"


def test_json_is_strict(capsys):
    value = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": math.nan, 3: (True, None, "x"), "p": io}
    console.json_line(value)
    assert json.loads(capsys.readouterr().out) == {
        "a": 0.5, "b": [1, 2], "c": None, "3": [True, None, "x"], "p": str(io)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "True"),
        (3, "3"),
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_short(value, shown):
    assert console.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (4.21, "4.2 s"), (192, "3m 12s"), (18420, "5h 07m"), (183600, "2d 03h")],
)
def test_durations_are_readable(seconds, shown):
    assert console.duration(seconds) == shown
