"""Suites made by hand, for tests of what is made from them."""

from clipx.reports.suite import Row, SuiteTable


def row(method, value, *, seed=1, status="completed", error=None, **axes):
    """A cell of ``clipx adapt`` whose top1 is ``value``."""
    name = "-".join(map(str, (method, *axes.values(), seed)))
    overrides = " ".join(f"{axis}={number}" for axis, number in {**axes, "seed": seed}.items())
    return Row(
        command="adapt",
        method=method,
        axes=axes,
        seed=seed,
        cell=name,
        run=f"../../adapt/{method}/v0001" if status == "completed" else None,
        status=status,
        error=error,
        seconds=1.5,
        peak_memory_mb=300.0,
        metrics={} if value is None else {"top1": value, "top1_ci": 0.02},
        command_line=f"clipx adapt --method {method} {overrides}",
        config=f"method: {method}\nseed: {seed}\n",
    )


def suite(rows, *, metric="top1", baseline="zero-shot", x="shots", title="Adapters"):
    """A table of such cells."""
    return SuiteTable("adapters", title, tuple(rows), metric, baseline, x)


def grid(values, *, shots=(1, 4), seeds=(1, 2, 3), **axes):
    """Cells of every method, shots and seed; ``values[method](shots, seed)`` is the metric."""
    return [
        row(method, value(shot, seed), seed=seed, shots=shot, **axes)
        for method, value in values.items()
        for shot in shots
        for seed in seeds
    ]
