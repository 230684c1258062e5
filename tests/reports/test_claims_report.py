import json

import pytest

from clipx.reports.claims import COLUMNS, ClaimOutcome, page, read_claims

TOLD = {
    "command": "adapt",
    "method": "gda",
    "statement": "top1 >= tip-adapter + 0.02 (shots=16)",
    "metric": "top1",
    "over": "tip-adapter",
    "repetitions": 3,
    "budget": 1.0,
    "seconds": 75.0,
    "date": "2026-01-02",
    "version": "0.1.0",
    "hardware": "a processor, 2 cores",
    "command_line": "clipx eval suite=claims",
}
HELD = ClaimOutcome(**TOLD, verdict="holds", value=0.7, baseline=0.6, difference=0.1, low=0.05, high=0.15)
FAILED = ClaimOutcome(**{**TOLD, "method": "proker"}, verdict="not measured", problem="no images")


def test_a_row_shows_both_sides_and_the_interval():
    shown = dict(zip(COLUMNS, HELD.row(), strict=True))
    assert shown["method"] == "adapt/gda"
    assert (shown["baseline"], shown["method's"], shown["difference"]) == ("0.600", "0.700", "+0.100")
    assert shown["95% interval"] == "+0.050 to +0.150"
    assert shown["verdict"] == "holds"
    assert FAILED.row()[2:6] == ("-", "-", "-", "-")


def test_the_page_keeps_what_fails_and_says_how_it_was_measured():
    text = page([HELD, FAILED])
    assert "2 claims: 1 holds, 1 not measured." in text
    assert "| adapt/proker |" in text
    assert "adapt/proker: no images" in text
    assert "1m 15s" in text
    assert "`clipx eval suite=claims`" in text


def test_a_record_comes_back(tmp_path):
    path = tmp_path / "claims.json"
    path.write_text(json.dumps([vars(HELD), vars(FAILED)]))
    assert read_claims(path) == [HELD, FAILED]
    path.write_text('[{"strange": 1}]')
    with pytest.raises(ValueError, match="no record of claims"):
        read_claims(path)
