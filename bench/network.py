"""The workload of `bench.step --network`: one call is one training step of a discrete network, or one evaluation of a batch.

Both sides are the network of one architecture with the same weights, trained as by the command retrain: augmentation on the
device, drop path, auxiliary head where the network has one, SGD with momentum, clipping. Ours runs each cell as fused calls;
the others run its modules, and in an evaluation `folded` also folds every BatchNorm that follows a convolution into it.

Notation: N images, S pixels a side.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.workload import AGAINST, OURS, Dtype, Run, Side, WorkloadError, arrange, capture, resident_batch
from fastdarts.batch import Batch
from fastdarts.networks import DiscreteNetwork, NetworkKind, NetworkShape, architecture_of, build
from fastdarts.optim import Precision
from fastdarts.steps import CapturedSteps
from fastdarts.training.augment import Prepare
from fastdarts.training.update import WeightUpdate

NB201_BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
FOLDED = "folded"
DROP_PATH = 0.1  # half of the last epoch's rate


class Preset(NamedTuple):
    """A network whose figures papers report, or whose cell is unlike DARTS'."""

    architecture: str
    kind: NetworkKind
    init_channels: int
    layers: int
    image_size: int
    classes: int


NETWORKS = {
    "darts-cifar": Preset("DARTS_V2", "cifar", 36, 20, 32, 10),
    "darts-imagenet": Preset("DARTS_V2", "imagenet", 48, 14, 224, 1000),
    "nasnet-cifar": Preset("NASNet", "cifar", 36, 20, 32, 10),
    "nasbench201": Preset(NB201_BEST, "nasbench201", 16, 5, 32, 10),
}


@dataclass(frozen=True)
class NetworkWorkload:
    """Everything that the work of one call depends on; layers and init_channels None: the preset's."""

    network: str
    batch: int
    image_size: int
    evaluate: bool = False
    layers: int | None = None
    init_channels: int | None = None
    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    backend: str = "auto"

    def check(self, side: str) -> None:
        """Raise WorkloadError if the sizes do not fit together or the device cannot serve the side."""
        if side == FOLDED and not self.evaluate:
            raise WorkloadError("--against folded: BatchNorms are folded in an evaluation only: add --evaluate")
        if side not in (OURS, FOLDED) and AGAINST[side].captured and self.device == "cpu":
            raise WorkloadError(f"--against {side}: CUDA graphs need a GPU, this is to run on {self.device}")
        try:
            with torch.device("meta"):
                self.network_of().check_size(self.image_size, self.image_size)
        except ValueError as error:
            raise WorkloadError(f"--image_size {self.image_size}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """Return its entries in a record."""
        shape = self._shape()
        return {
            "network": self.network,
            "init_channels": shape.init_channels,
            "layers": shape.layers,
            "work": "evaluation" if self.evaluate else "training step",
            "batch": self.batch,
            "image_size": self.image_size,
            "dtype": self.dtype,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "backend": self.backend,
        }

    @property
    def images(self) -> int:
        """Images of one call."""
        return self.batch

    @property
    def parameter_dtype(self) -> torch.dtype:
        """What weights are stored in."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def build(self, name: str) -> Run:
        """Make the side `name`: one call does the work once and returns its loss. Raises WorkloadError."""
        self.check(name)
        side = Side(torch.channels_last) if name in (OURS, FOLDED) else AGAINST[name]
        torch.manual_seed(0)
        network = self.network_of()
        network.set_backend(self.backend if name == OURS else "definition")
        arrange(network, self, side)
        for cell in network.cells if side.compiled else ():
            cell.compile(dynamic=False)
        batch = resident_batch(self, NETWORKS[self.network].classes, 1)
        run = self._evaluation(network, batch, name) if self.evaluate else self._step(network, batch, ours=name == OURS)
        return capture(run) if side.captured else run

    def _shape(self) -> NetworkShape:
        p = NETWORKS[self.network]
        C, layers = self.init_channels or p.init_channels, self.layers or p.layers
        auxiliary = p.kind != "nasbench201"
        return NetworkShape(p.kind, C, layers, p.classes, auxiliary, auxiliary_pool="adaptive", image_size=self.image_size)

    def network_of(self) -> Any:
        """Build the network."""
        return build(architecture_of(NETWORKS[self.network].architecture), self._shape())

    def _step(self, network: DiscreteNetwork, batch: Batch, *, ours: bool) -> Run:
        network.train()
        network.drop_path_rate.fill_(DROP_PATH)
        update = WeightUpdate(
            network,
            torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4, fused=True),
            PREPARE,
            auxiliary_weight=0.4,
            grad_clip=5.0,
            precision=Precision("bf16" if self.dtype == "bfloat16" else "off", self.device),
        )
        return _Steps(CapturedSteps(update) if ours else update, batch)

    def _evaluation(self, network: DiscreteNetwork, batch: Batch, name: str) -> Run:
        network.eval()
        if name == FOLDED:
            fold(network)
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16", cache_enabled=False)

        @torch.no_grad()
        def run() -> Tensor:
            with autocast:
                return network(PREPARE.evaluate(batch, self.parameter_dtype)).logits.square().mean()

        return run


PREPARE = Prepare((0.491, 0.482, 0.447), (0.247, 0.243, 0.262), cutout=16)


class _Steps:
    """One training step after the other on a batch that stays; a call returns the loss."""

    def __init__(self, update: WeightUpdate | CapturedSteps, batch: Batch) -> None:
        self.update: Any = update
        self.batch, self.number = batch, torch.zeros(1, dtype=torch.int64, device=batch.index.device)

    def __call__(self) -> Tensor:
        loss, _ = self.update(self.number, self.batch, None)
        self.number.add_(1)
        return loss

    @property
    def replay(self) -> str:
        """Whether the library replays its steps, known after the first: "CUDA graphs", or why not."""
        return "CUDA graphs" if self.update.captured else f"uncaptured: {self.update.reason}"


def fold(module: nn.Module) -> None:
    """Fold each BatchNorm of an evaluated network into the convolution before it, in place, if there is one."""
    for inner in module.modules():
        if not isinstance(inner, nn.Sequential):
            continue
        names = list(inner._modules)
        for first, second in pairwise(names):
            conv, norm = inner._modules[first], inner._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                inner._modules[first], inner._modules[second] = fuse_conv_bn_eval(conv, norm), nn.Identity()
