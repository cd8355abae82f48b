"""Pretext tasks, alone and with classification: rotation, colourisation, jigsaw.

Source: Liu et al., "Are Labels Necessary for Neural Architecture Search?", ECCV 2020; baselines of MIM-DARTS, section 4.3.

Notation: N images, S pixels a side, M inputs of the supernet, C channels of its last feature, K classes of the task.
"""

import math
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour, Objective, Weights, first_step, full_precision
from fastdarts.objectives.colour import BINS, bin_table, lab, nearest_bin
from fastdarts.objectives.head import attach, class_logits, figures
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Purpose, Stream, random_words
from fastdarts.supernet import Network

MOST_NUMBERS = 2**31 - 1  # largest output of torch's bilinear interpolation of channels_last tensors on a GPU
PERMUTATIONS = list(permutations(range(4)))  # of a 2 x 2 grid's tiles, row by row: the tile at each position


class Task(nn.Module):
    """A classification task on images without labels, and its head: K = classes.

    channels   C
    mean, std  of pixels in [0, 1]
    """

    classes: int

    def __init__(self, channels: int, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.head = self.make_head(channels)

    def make_head(self, channels: int) -> nn.Linear | nn.Conv2d:
        """Return the layer between the feature's average over the pixels and the logits."""
        return nn.Linear(channels, self.classes)

    def pose(self, batch: Batch, step: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """Return the supernet's input (M, 3, s, s), of the parameters' dtype, and the targets, int64."""
        raise NotImplementedError

    def answer(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """Map the last feature (M, C, h, w) to logits (targets, K), of the parameters' dtype; size: of the images."""
        return self.head(feature.mean((2, 3))).to(self.head.weight.dtype)

    def images(self, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of joint classification: averaged features (M, C) and labels (N,), one for each of its rows."""
        return pooled, labels

    def _normalised(self, batch: Batch) -> Tensor:
        return normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=self.head.weight.dtype)


class Rotation(Task):
    """Predict an image's rotation in quarter turns, counterclockwise (Gidaris et al., ICLR 2018).

    The input has each image in all four rotations, M = 4N, as in UnNAS: nothing is random.
    """

    classes = 4

    def pose(self, batch: Batch, step: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """Return image 0 rotated by 0, 1, 2, 3 quarter turns, then image 1, ...: (4N, 3, S, S) and (4N,)."""
        x = self._normalised(batch).permute(0, 2, 3, 1)
        turned = torch.stack([x.rot90(k, (1, 2)) for k in range(4)], 1).flatten(0, 1)
        return turned.permute(0, 3, 1, 2), torch.arange(4, device=x.device).repeat(len(x))

    def images(self, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat an image's label for each of its rotations."""
        return pooled, labels.repeat_interleave(4)


class Colourisation(Task):
    """Predict each pixel's bin, one of 313 in the ab plane, from its lightness (Zhang et al., ECCV 2016).

    As in UnNAS the head is a 1x1 convolution, its logits upsampled to the image, the nearest bin the target, and lightness
    is scaled by the means of `mean` and `std`. Unlike UnNAS, all three channels hold the lightness, as the stem takes three,
    and logits are upsampled with align_corners=False.
    """

    classes = len(BINS)

    def __init__(self, channels: int, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        super().__init__(channels, mean, std)
        self.table: Tensor
        self.register_buffer("table", bin_table(), persistent=False)

    def make_head(self, channels: int) -> nn.Conv2d:
        """Return a 1x1 convolution: the feature is not averaged."""
        return nn.Conv2d(channels, self.classes, 1)

    def pose(self, batch: Batch, step: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """Return (N, 3, S, S) of lightness, and (N S S,), pixels row by row."""
        dtype = self.head.weight.dtype
        pixels = normalise(batch.images, batch.flip, mean=(0, 0, 0), std=(1, 1, 1), dtype=dtype)
        with full_precision(pixels.device):
            L, a, b = lab(pixels)
        x = (L / 100 - sum(self.mean) / 3) / (sum(self.std) / 3)
        return x[..., None].expand(-1, -1, -1, 3).permute(0, 3, 1, 2), nearest_bin(a, b, self.table).flatten()

    def answer(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, h, w) -> (N S S, 313); bilinear, align_corners=False."""
        logits = self.head(feature).to(self.head.weight.dtype)
        most = max(1, MOST_NUMBERS // (self.classes * math.prod(size)))
        parts = [F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in logits.split(most)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).permute(0, 2, 3, 1).flatten(0, 2)


class Jigsaw(Task):
    """Predict the order of an image's four tiles, one of 24 (Noroozi and Favaro, ECCV 2016; 2 x 2 as in MIM-DARTS).

    As in UnNAS each tile, normalised by its own mean and deviation, passes through the supernet separately, M = 4N, and the
    head
    reads the averaged features of the four positions, concatenated. Tiles are whole quarters, S/2 pixels a side; UnNAS
    crops three quarters of that side, at a random position.

    seed  of the permutations: fresh for each image, step and stream
    """

    classes = len(PERMUTATIONS)

    def __init__(self, channels: int, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD, *, seed: int = 0) -> None:
        super().__init__(channels, mean, std)
        self.seed = seed
        self.permutations: Tensor
        self.register_buffer("permutations", torch.tensor(PERMUTATIONS), persistent=False)

    def pose(self, batch: Batch, step: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """Return the four positions of image 0, of image 1, ...: (4N, 3, S/2, S/2), and the permutations' numbers (N,)."""
        words = random_words(self.seed, stream, step, batch.index, Purpose.JIGSAW, 1)[:, 0]
        number = (words * self.classes) >> 32  # words are uniform in [0, 2**32)
        x = self._normalised(batch).permute(0, 2, 3, 1)
        N, S = x.shape[:2]
        tiles = x.view(N, 2, S // 2, 2, S // 2, 3).transpose(2, 3).flatten(1, 2)  # (N, 4, S/2, S/2, 3)
        deviation, mean = torch.std_mean(tiles, (2, 3, 4), correction=0, keepdim=True)
        tiles = (tiles - mean) / deviation.clamp(min=1e-5)
        shuffled = torch.take_along_dim(tiles, self.permutations[number][:, :, None, None, None], 1)
        return shuffled.flatten(0, 1).permute(0, 3, 1, 2), number

    def make_head(self, channels: int) -> nn.Linear:
        """Return a linear layer on the concatenated averages of the four positions."""
        return nn.Linear(4 * channels, self.classes)

    def answer(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """(4N, C, h, w) -> (N, 24)."""
        return self.head(feature.mean((2, 3)).view(-1, 4 * feature.shape[1])).to(self.head.weight.dtype)

    def images(self, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Average an image's feature over its tiles."""
        return pooled.unflatten(0, (-1, 4)).mean(1), labels


class Pretext(Objective):
    """L_task, or with classification L_cls + L_task: cross entropies of two heads on one encoding.

    num_classes  None: the task alone, labels are not read

    The supernet holds the classifier (see Classification). Raises ValueError for fewer than two classes.
    """

    def __init__(self, supernet: Network, task: Task, num_classes: int | None = None) -> None:
        super().__init__()
        self.needs_labels = num_classes is not None
        if num_classes is not None:
            attach(supernet, num_classes)
        self.task = task

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """Return the loss (see Objective.forward)."""
        logits, target, classified = self._answers(supernet, weights, batch, step, stream)
        loss = F.cross_entropy(logits, target)
        return loss if classified is None else F.cross_entropy(*classified) + loss

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and `top1`: of the task alone its accuracy in [0, 1].

        With classification, `top1` and `top5` are of the labels, `task_loss` and `task_top1` of the task.
        """
        logits, target, classified = self._answers(supernet, weights, batch, first_step(batch), Stream.EVAL)
        loss, top1 = F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()
        if classified is None:
            return {"loss": loss, "top1": top1}
        found = figures(*classified)
        return found | {"loss": found["loss"] + loss, "task_loss": loss, "task_top1": top1}

    def _answers(
        self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Return the task's logits and targets; with labels, also classification's."""
        x, target = self.task.pose(batch, step, stream)
        feature = supernet(x, weights, step, stream)[-1]
        logits = self.task.answer(feature, (batch.images.shape[1], batch.images.shape[2]))
        if not self.needs_labels:
            return logits, target, None
        pooled, labels = self.task.images(feature.mean((2, 3)), batch.labels)
        return logits, target, (class_logits(supernet, pooled), labels)
