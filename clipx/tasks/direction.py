"""Which way a metric is better."""

_LOWER_IS_BETTER = (
    "loss",
    "nll",
    "ece",
    "mce",
    "brier",
    "fpr95",
    "aurc",
    "risk",
    "rank",
    "error",
    "perplexity",
    "gap",
    "seconds",
    "peak_memory_mb",
    "centroid_distance",
    "alignment",
    "uniformity_image",
    "uniformity_text",
    "cross_uniformity",
)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one, by its name.

    Args:
        metric: its name, a prefix and all: ``text_to_image_median_rank``, ``validation_loss``,
            ``classwise_ece``; what is not known to fall is taken to rise.
    """
    return metric.lower().replace("/", "_").split("_")[-1] in _LOWER_IS_BETTER or metric in _LOWER_IS_BETTER
