"""What all objectives with labels share: the linear classifier on the globally averaged last feature."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.supernet import Network


def attach(supernet: Network, num_classes: int) -> None:
    """Make the classifier, where DARTS keeps it (`supernet.classifier`). Raises ValueError for fewer than two classes."""
    if num_classes < 2:
        raise ValueError(f"classification needs at least two classes, got {num_classes}")
    supernet.attach_classifier(num_classes)


def classifier_of(supernet: Network) -> nn.Linear:
    """What `attach` made. Raises RuntimeError where it was taken away since."""
    classifier = supernet.classifier
    if classifier is None:
        raise RuntimeError("the supernet has no classifier any more: make the objective anew")
    return classifier


def class_logits(supernet: Network, pooled: Tensor) -> Tensor:
    """Averaged features (M, C) -> (M, classes), of the parameters' dtype."""
    classifier = classifier_of(supernet)
    return classifier(pooled).to(classifier.weight.dtype)


def figures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`loss` (cross entropy), `top1` and `top5` accuracy in [0, 1] (top5 = 1 for five classes or fewer).

    logits (M, classes); labels int64 (M,).
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels),
        "top1": hits[:, 0].float().mean(),
        "top5": hits.any(1).float().mean(),
    }
