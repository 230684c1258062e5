"""What the tests of adapters share: the toy of the sheets, and accuracy on featurebench."""

import statistics

import torch
from torch.nn import functional

from clipx.adapters.protocol import fit
from clipx.data.featurebench import featurebench


def unit(rows, dtype=torch.float64):
    return functional.normalize(torch.tensor(rows, dtype=dtype), dim=-1)


SHOTS = unit([[1, 0, 0.2], [0.9, 0.1, 0], [0, 1, 0.3], [0.2, 0.8, 0]])
LABELS = torch.tensor([0, 0, 1, 1])
TEXT = unit([[1, 0.2, 0.5], [0.1, 1, 0.4]])
QUERY = unit([[0.6, 0.5, 0.1]])


def drawn(classes=5, shots=4, dims=12, queries=30, seed=0, dtype=torch.float64):
    """Random unit features, labels, classifier and queries of a small task."""
    generator = torch.Generator().manual_seed(seed)

    def rows(n):
        return functional.normalize(torch.randn(n, dims, generator=generator, dtype=dtype), dim=-1)

    return rows(classes * shots), torch.arange(classes).repeat_interleave(shots), rows(classes), rows(queries)


def fitted_on(bench, adapter):
    return fit(
        adapter,
        *bench.train,
        bench.text_classifier,
        logit_scale=bench.logit_scale,
        validation=bench.validation,
        groups=bench.groups,
        projection=bench.projection,
    )


def accuracies(make, shots, seeds=(1, 2, 3), **settings):
    """Percent right on test, one a seed."""
    figures = []
    for seed in seeds:
        bench = featurebench(shots=shots, seed=seed, **settings)
        logits = fitted_on(bench, make()).logits(bench.test[0])
        figures.append(100 * float((logits.argmax(1) == bench.test[1]).float().mean()))
    return figures


def mean_accuracy(make, shots, **settings):
    return statistics.mean(accuracies(make, shots, **settings))
