"""``clipx`` with a recipe that takes a moment and notes its call, and a plain report, for tests of eval."""

import os
import sys
import time
import types

from clipx.reports import suite, tidy


def recipe(config, run):
    """Note the cell, wait, and give numbers that the settings decide; seed 13 fails unless there is mercy."""
    time.sleep(float(os.environ.get("CELL_SECONDS", "0")))
    with open(os.environ["LEDGER"], "a") as file:
        file.write(f"{config.method} {config.shots} {config.seed} {run.directory.name}\n")
    if config.seed == 13 and "MERCY" not in os.environ:
        raise ValueError("bad luck")
    return {"top1": len(config.method) / 100 + config.shots / 1000 + config.seed / 10000, "top1_ci": 0.01}


def write_table(table, folder):
    """The tidy table alone: figures take seconds."""
    path = folder / "results.csv"
    path.write_bytes(tidy.csv(tidy.tidy(table)))
    rows = tuple((row.method, str(row.metrics.get("top1"))) for row in table.rows)
    return suite.Report(("method", "top1"), rows, (path,))


def install(put=setattr):
    module = types.ModuleType("adapt")
    module.main = recipe
    sys.modules["clipx.recipes.adapt"] = module
    put(suite, "write_report", write_table)
