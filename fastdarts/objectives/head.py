"""The classification head of all objectives with labels: a linear classifier on the globally averaged last feature."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.supernet import Network


def attach(supernet: Network, num_classes: int) -> None:
    """Create the classifier under DARTS' name (`supernet.classifier`). Raises ValueError for fewer than two classes."""
    if num_classes < 2:
        raise ValueError(f"classification needs at least two classes, got {num_classes}")
    supernet.attach_classifier(num_classes)


def classifier_of(supernet: Network) -> nn.Linear:
    """Return the classifier that `attach` made. Raises RuntimeError if it has been removed."""
    classifier = supernet.classifier
    if classifier is None:
        raise RuntimeError("the supernet's classifier was removed: create the objective again")
    return classifier


def class_logits(supernet: Network, pooled: Tensor) -> Tensor:
    """Map averaged features (M, C) to logits (M, classes), in the parameters' dtype."""
    classifier = classifier_of(supernet)
    return classifier(pooled).to(classifier.weight.dtype)


def figures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return `loss` (cross entropy), `top1` and `top5` accuracy in [0, 1] (top5 = 1 for five classes or fewer).

    logits (M, classes); labels int64 (M,).
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels),
        "top1": hits[:, 0].float().mean(),
        "top5": hits.any(1).float().mean(),
    }
