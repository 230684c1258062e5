from clipx.reports.tables import csv_text, markdown, metric_rows
from clipx.tasks.intervals import Estimate

ESTIMATES = {
    "top1": Estimate(0.91234, 0.9, 0.92345),
    "perfect": Estimate(1.0, 0.98, 1.0),
    "median_rank": Estimate(12.5, 11.0, 14.0),
}


def test_metric_rows():
    assert metric_rows(ESTIMATES) == [
        ["top1", "0.912", "0.900 to 0.923"],
        ["perfect", "1.000", "0.980 to 1.000"],
        ["median_rank", "12.5", "11 to 14"],
    ]


def test_markdown():
    text = markdown(["name", "value"], [["a|b", 0.123456], ["two\nlines", None]], right=["value"])
    assert text == "| name | value |\n| --- | ---: |\n| a\\|b | 0.1235 |\n| two lines | - |\n"


def test_csv_text():
    text = csv_text(["name", "value"], [["a,b", 0.5], ["none", None]])
    assert text == 'name,value\n"a,b",0.5\nnone,\n'
