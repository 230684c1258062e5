"""The linear probe that a head starts from, fitted before its model is fine-tuned."""

from torch import Tensor

from clipx import console
from clipx.adapters.linear_probe import LinearProbe
from clipx.data.fields import UNLABELLED
from clipx.inference.evaluation import Evaluation
from clipx.inference.zero_shot import zero_shot_classifier
from clipx.models.clip import CLIP


def probed_head(clip: CLIP, training: Evaluation, validation: Evaluation) -> tuple[Tensor, Tensor]:
    """Logistic regression on the embeddings of a training split, its L2 penalty chosen on validation.

    Args:
        clip: as it is before fine-tuning.
        training: the split to learn from, as it is evaluated: without augmentation.
        validation: another, of the same classes.

    Returns:
        Weights ``[C, D]`` and biases ``[C]``, on the model's device.

    Raises:
        ClipxError: a class without an example, or no example that can be used.

    Source: Kumar et al. 2022 (LP-FT), section 3.4; the search for the penalty is that of ``LinearProbe``.
    """
    console.info("fitting the linear probe that the head starts from")
    (rows, labels), held = _labelled(clip, training), _labelled(clip, validation)
    device = clip.device if clip.device.type == "cuda" else "cpu"  # float64 is not everywhere
    classifier = zero_shot_classifier(clip, training.source.classes or [], training.templates)
    probe = LinearProbe().fit(
        rows.to(device),
        labels.to(device),
        classifier.to(device),
        logit_scale=float(clip.logit_scale.detach()),
        validation=(held[0].to(device), held[1].to(device)),
    )
    right = (probe.logits(held[0].to(device)).argmax(1).cpu() == held[1]).double().mean()
    console.info(f"linear probe: C={probe.c_:.3g}, top1 {float(right):.3f} on validation")
    return probe.weight_.to(clip.device), probe.bias_.to(clip.device)


def _labelled(clip: CLIP, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    embedded = evaluation.embed(clip)
    kept = embedded.labels != UNLABELLED
    return embedded.image[kept], embedded.labels[kept]
