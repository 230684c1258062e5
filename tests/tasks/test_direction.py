import pytest

from clipx.tasks.direction import lower_is_better


@pytest.mark.parametrize(
    "metric",
    [
        "loss",
        "val/loss",
        "nll",
        "classwise_ece",
        "text_to_image_median_rank",
        "fpr95",
        "group_gap",
        "peak_memory_mb",
    ],
)
def test_what_falls(metric):
    assert lower_is_better(metric)


@pytest.mark.parametrize(
    "metric", ["top1", "image_to_text_recall@1", "ndcg@10", "auroc", "miou", "worst_group", "rank_agreement"]
)
def test_what_rises(metric):
    assert not lower_is_better(metric)
