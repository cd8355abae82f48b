"""Common interface of supernets: cells in three stages, and a feature at the end of each.

Notation: N images, S pixels a side, C channels of a cell's nodes, E edges of a cell.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdarts.ops.backend import offered
from fastdarts.ops.batch_norm import BatchNorm
from fastdarts.ops.conv_bn_chain import conv_bn_chain
from fastdarts.ops.philox import Purpose, random_words
from fastdarts.ops.sync import Sync
from fastdarts.spaces import Kind, Space
from fastdarts.supernet.cell import CellWeights
from fastdarts.supernet.drop_path import EdgeDropPath
from fastdarts.supernet.eager_candidates import MixedEdgesWithEager, SkipDropout
from fastdarts.supernet.mixed import MixedEdges, PackedEdges

ChannelSampling = Literal["first", "random"]


def check_channels(C: int, k: int) -> None:
    """Raise ValueError unless C/k channels can pass through the candidates of the first stage (2C/k and 4C/k of the others)."""
    if k < 1 or C % k:
        raise ValueError(f"init_channels = {C} and partial_channels = {k}: C/k must be an integer")


class Network(nn.Module):
    """A search network without its head, which belongs to the objective.

    space, partial_channels, channel_sampling, seed, backend  see Supernet

    A subclass creates the modules, sets `tap_channels` and `multiple`, and defines forward.
    """

    tap_channels: list[int]  # of the three features
    multiple: int  # the image's side must be a multiple of this, so that every halving is exact

    def __init__(
        self,
        space: Space,
        *,
        partial_channels: int = 1,
        channel_sampling: ChannelSampling = "first",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.space, self.k = space, partial_channels
        self.channel_sampling, self.seed, self.backend = channel_sampling, seed, backend
        self.sync: Sync | None = None
        self.classifier: nn.Linear | None = None

    def forward(
        self,
        x: Tensor,
        weights: Mapping[Kind, CellWeights],
        step: Tensor | None = None,
        stream: int = 0,
    ) -> list[Tensor]:
        """Return the features of the three stages.

        x        (N, 3, S, S), S a multiple of `multiple`
        weights  mixing weights of each kind of cell; differentiable
        step     int64 tensor of one element on x' device; needed by (and only read for) random channels
        stream   a philox.Stream: stream of the random channels
        Returns F_l, l = 1..3: (N, tap_channels[l], S / (d * 2**l)) with d = multiple / 8.
        Raises ValueError for images of another size.
        """
        raise NotImplementedError

    @property
    def num_cells(self) -> int:
        """Return the number of cells, without blocks between them."""
        return sum(isinstance(module, PackedEdges) for module in self.modules())

    def synchronise(self, sync: Sync | None) -> None:
        """Compute BatchNorm's batch statistics over the images of all ranks; None: over those of this process.

        All ranks have equally many images. In each direction, a cell sums over the ranks at most 9 times (once for both
        preprocess layers, once or twice for the inputs and for each node that is read), the stem once per layer, a cell with
        eager candidates once or twice per fused call. The definitions sum once per BatchNorm.
        Raises ValueError for a custom candidate that has a BatchNorm.
        """
        for name, module in self.named_modules():
            own = isinstance(module, MixedEdgesWithEager) and any(isinstance(m, _BatchNorm) for m in module.modules())
            if own and sync is not None:
                raise ValueError(f"{name}: BatchNorm in a custom candidate cannot be synchronised over ranks")
        modules: Iterator[Any] = self.modules()
        for module in modules:
            if hasattr(module, "sync"):
                module.sync = sync

    def drop_skips(self, rate: float) -> None:
        """Set the rate at which skips drop numbers; nothing without `skip_dropout`. Takes effect in captured graphs too."""
        for module in self.modules():
            if isinstance(module, SkipDropout):
                module.rate.fill_(rate)

    def restrict(self, kept: Mapping[Kind, Sequence[Collection[int]]] | None) -> None:
        """Compute only the candidates at these places of each kind of cell and edge (MixedEdges.restrict); None: all.

        Cells with eager candidates compute all of theirs.
        """
        for cell in self.modules():
            for part in cell.children():
                if isinstance(part, MixedEdges):
                    kind: Any = cell.kind
                    part.restrict(None if kept is None else kept[kind])

    def drop_edges(self, rate: float) -> None:
        """Set the rate of drop path; nothing without `drop_path`. Takes effect in captured graphs too."""
        for module in self.modules():
            if isinstance(module, EdgeDropPath):
                module.rate.fill_(rate)

    def attach_classifier(self, num_classes: int) -> nn.Linear:
        """Return the linear head on the last feature, under DARTS' name for it; the first call creates it.

        Raises ValueError if there is one of another size (whose parameters an optimizer may hold).
        """
        if self.classifier is None:
            self.classifier = nn.Linear(self.tap_channels[-1], num_classes).to(next(self.parameters()))
        if self.classifier.out_features != num_classes:
            has = f"the supernet has a classifier of {self.classifier.out_features} classes"
            raise ValueError(f"{has}, requested {num_classes}: set supernet.classifier = None first")
        return self.classifier

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load like torch, including files of DARTS' codebases: drops a DataParallel prefix, keeps a classifier."""
        if state_dict and all(name.startswith("module.") for name in state_dict):
            state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
        if "classifier.weight" in state_dict:
            self.attach_classifier(state_dict["classifier.weight"].shape[0])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _check_size(self, x: Tensor, what: str) -> None:
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels: with {what} the sides must be multiples of {self.multiple}"
            )

    def _channels(self, number: int, C: int, step: Tensor | None, stream: int) -> Tensor | None:
        """Return the channels that each edge of cell `number` processes at this step: int64 (E, C/k), or None for `first`.

        They are the C/k channels with the smallest random words, in ascending order.
        """
        if self.channel_sampling == "first" or self.k == 1:
            return None
        if step is None:
            raise ValueError("random channels depend on the step: pass step, an int64 tensor of one element")
        E = self.space.num_edges
        edges = torch.arange(number * E, (number + 1) * E, device=step.device)
        words = random_words(self.seed, stream, step, edges, Purpose.CHANNELS, C)
        return words.sort(dim=1, stable=True).indices[:, : C // self.k].sort(dim=1).values

    def _chain(
        self, x: Tensor, convolutions: Sequence[nn.Conv2d], norms: Sequence[BatchNorm], outputs: int = 1
    ) -> list[Tensor]:
        """Run conv_bn_chain with these modules' parameters; returns the last `outputs` results."""
        one, tracks = norms[0], norms[0].running_mean is not None
        if one.training and tracks:
            for bn in norms:
                bn.num_batches_tracked.add_(1)
        return list(
            conv_bn_chain(
                x,
                [conv.weight for conv in convolutions],
                [(bn.weight, bn.bias) for bn in norms],
                [(bn.running_mean, bn.running_var) for bn in norms] if tracks else None,
                strides=[conv.stride[0] for conv in convolutions],
                outputs=outputs,
                training=one.training,
                momentum=one.momentum,
                eps=one.eps,
                backend=offered("conv_bn_chain", self.backend),
                sync=self.sync,
            )
        )
