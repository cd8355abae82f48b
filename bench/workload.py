"""The workload: one call is one first-order bilevel step of a supernet, or one pass through a cell's mixed edges.

Both sides of a comparison are built here, from the same seeds, so that they compute the same numbers. "ours" is the
library as its search command uses it: on a GPU its step is replayed as CUDA graphs. The others are the plain-PyTorch
definition, one operator after another: each edge evaluated once, alpha's gradient without any weight's, fused optimizers,
batches that stay on the device.

Notation: N images, S pixels a side, C channels of a node, k the divisor of partial channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, MaskedReconstruction, Objective
from fastdarts.optim import Precision
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.spaces import S0, Space
from fastdarts.steps import CapturedSteps
from fastdarts.supernet import CellWeights, Supernet, SupernetCell

Dtype = Literal["float32", "float64", "bfloat16"]
Run = Callable[[], Tensor]
CHANNELS = 16  # of a node in the first stage


class WorkloadError(ValueError):
    """A workload that cannot be built or run here; the message names the flag."""


@dataclass(frozen=True)
class Preset:
    """A published search network: 8 cells, C = CHANNELS."""

    stem: Literal["cifar", "imagenet"]
    image_size: int
    partial_channels: int
    edge_weights: bool
    classes: int | None  # None: masked reconstruction


SUPERNETS = {
    "cifar": Preset("cifar", 32, 1, False, 10),  # DARTS
    "pc-cifar": Preset("cifar", 32, 4, True, 10),  # PC-DARTS
    "pc-imagenet": Preset("imagenet", 224, 2, True, 1000),  # PC-DARTS
    "mae-imagenet": Preset("imagenet", 224, 2, True, None),  # MAE-NAS
}
CELL = "cell"  # the 14 mixed edges of one stride-1 CIFAR cell
CELL_SIZE = 32


@dataclass(frozen=True)
class Workload:
    """Everything that the work of one call depends on.

    supernet          a name in SUPERNETS, or CELL
    batch             N, of the training and of the validation batch alike
    image_size        S (the cell's states have S x S pixels)
    partial_channels  k
    dtype             of weights and arithmetic; bfloat16 = autocast, with float32 weights (search.Precision)
    device            the present GPU, or the CPU
    backend           of the library's fused ops, on our side
    space             of candidates; S0 unless a test wants a small one
    unrolled          alpha's step is of second order
    """

    supernet: str
    batch: int
    image_size: int
    partial_channels: int
    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    backend: str = "auto"
    space: Space = S0
    unrolled: bool = False

    def check(self, side: str) -> None:
        """Raise WorkloadError if the sizes do not fit together or the device cannot serve the side."""
        if side != OURS and AGAINST[side].captured and self.device == "cpu":
            raise WorkloadError(f"--against {side}: CUDA graphs need a GPU, this is to run on {self.device}")
        if CHANNELS % (2 * self.partial_channels):
            raise WorkloadError(f"--partial_channels {self.partial_channels}: C/k must be even, with C = {CHANNELS}")
        if self.supernet != CELL:
            with torch.device("meta"):
                multiple = make_supernet(self, self.backend).multiple
            if self.image_size % multiple:
                raise WorkloadError(f"--image_size {self.image_size}: {self.supernet} needs a multiple of {multiple}")

    def facts(self) -> dict[str, Any]:
        """Return its entries in a record."""
        return {
            "supernet": self.supernet,
            "batch": self.batch,
            "image_size": self.image_size,
            "partial_channels": self.partial_channels,
            "dtype": self.dtype,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "backend": self.backend,
        }

    @property
    def images(self) -> int:
        """Images that one call passes forward and backward."""
        return self.batch if self.supernet == CELL else 2 * self.batch

    @property
    def parameter_dtype(self) -> torch.dtype:
        """What weights, alpha and the cell's states are stored in."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def build(self, name: str) -> Run:
        """Make the side `name`, OURS or a key of AGAINST: one call does the work once and returns its loss.

        The first call of a compiled side compiles; a captured side is captured here. Raises WorkloadError.
        """
        self.check(name)
        torch.backends.cudnn.benchmark = True
        config: Any = torch._dynamo.config
        config.recompile_limit = 64  # cells of 8 shapes, each with and without gradients of the mix
        torch.manual_seed(0)
        # Our side is laid out as the search command lays out its supernet.
        side = Side(torch.channels_last) if name == OURS else AGAINST[name]
        backend = self.backend if name == OURS else "definition"
        if self.supernet == CELL:
            run = _cell_pass(self, side, backend)
        else:
            run = _bilevel_step(self, side, backend, ours=name == OURS)
        return capture(run) if side.captured else run


class Placed(Protocol):
    """What `arrange` and `resident_batch` read of a workload."""

    @property
    def batch(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def device(self) -> Literal["cpu", "cuda"]: ...
    @property
    def parameter_dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Side:
    """One way to evaluate the definition."""

    layout: torch.memory_format
    compiled: bool = False  # each cell by torch.compile
    captured: bool = False  # the whole call in a CUDA graph


OURS = "ours"
AGAINST = {
    "eager": Side(torch.contiguous_format),
    "channels-last": Side(torch.channels_last),
    "compile": Side(torch.contiguous_format, compiled=True),
    "graph": Side(torch.contiguous_format, captured=True),
    "graph-channels-last": Side(torch.channels_last, captured=True),
}


def make_supernet(workload: Workload, backend: str) -> Supernet:
    """Make the workload's search network, on the default device and in the default layout."""
    stem, k = SUPERNETS[workload.supernet].stem, workload.partial_channels
    return Supernet(workload.space, C=CHANNELS, stem=stem, partial_channels=k, backend=backend)


def make_objective(workload: Workload, supernet: Supernet, backend: str) -> Objective:
    """Make the workload's objective, on the default device."""
    classes = SUPERNETS[workload.supernet].classes
    if classes is None:
        return MaskedReconstruction(supernet.tap_channels, backend=backend)
    return Classification(supernet, classes)


def _bilevel_step(workload: Workload, side: Side, backend: str, *, ours: bool) -> Run:
    """Alpha's gradient and update, then the weights' gradient, clipping and update, from uint8 on the device."""
    preset, device = SUPERNETS[workload.supernet], workload.device
    supernet = make_supernet(workload, backend)
    objective = make_objective(workload, supernet, backend)
    arrange(supernet, workload, side)
    objective.to(device, workload.parameter_dtype)
    for cell in supernet.cells if side.compiled else ():
        cell.compile(dynamic=False)
    relaxation = SoftmaxRelaxation(
        workload.space, edge_normalization=preset.edge_weights, device=device, dtype=workload.parameter_dtype
    )
    weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
    bilevel = Bilevel(  # DARTS' settings: at these rates no side's numbers run away while it is timed
        supernet,
        objective,
        relaxation,
        torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4, fused=True),
        torch.optim.Adam(relaxation.parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3, fused=True, capturable=side.captured),
        unrolled=workload.unrolled,
        precision=Precision("bf16" if workload.dtype == "bfloat16" else "off", device),
    )
    train, val = (resident_batch(workload, preset.classes or 1, seed) for seed in (1, 2))
    return Steps(CapturedSteps(bilevel) if ours else bilevel, train, val)


class Steps:
    """One bilevel step after the other on two batches that stay; a call returns the training loss."""

    def __init__(self, bilevel: Bilevel | CapturedSteps, train: Batch, val: Batch) -> None:
        self.bilevel: Any = bilevel
        self.train, self.val = train, val
        self.number = torch.zeros(1, dtype=torch.int64, device=train.index.device)

    def __call__(self) -> Tensor:
        loss, _ = self.bilevel(self.number, self.train, self.val)
        self.number.add_(1)
        return loss

    @property
    def replay(self) -> str:
        """Whether the library replays its steps, known after the first: "CUDA graphs", or why not."""
        return "CUDA graphs" if self.bilevel.captured else f"uncaptured: {self.bilevel.reason}"


def _cell_pass(workload: Workload, side: Side, backend: str) -> Run:
    """Forward and backward of one normal cell without its two preprocess layers: gradients of states, mix and weights."""
    C, N, S, dtype = CHANNELS, workload.batch, workload.image_size, workload.parameter_dtype
    space, generator = workload.space, torch.Generator().manual_seed(1)
    k = workload.partial_channels
    cell = SupernetCell(space, "normal", C, C, C, reduction_prev=False, partial_channels=k, backend=backend)
    for name in ("preprocess0", "preprocess1"):
        cell.register_module(name, nn.Identity())
    arrange(cell, workload, side)
    if side.compiled:
        cell.compile(dynamic=False)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        layout = side.layout if len(shape) == 4 else torch.preserve_format
        return values.to(workload.device, dtype, memory_format=layout)

    s0, s1 = (normal(N, C, S, S).requires_grad_() for _ in range(2))
    mix = normal(space.num_edges, len(space.normal[0])).softmax(-1).requires_grad_()
    gradient = normal(N, space.nodes * C, S, S)
    inputs = [s0, s1, mix, *cell.parameters()]
    autocast = torch.autocast(workload.device, torch.bfloat16, enabled=workload.dtype == "bfloat16", cache_enabled=False)

    def run() -> Tensor:
        with autocast:
            out = cell(s0, s1, CellWeights(mix))
        grads = torch.autograd.grad(out, inputs, gradient.to(out.dtype))
        return grads[2].square().sum()  # dL/dmix

    return run


def arrange(module: nn.Module, workload: Placed, side: Side) -> None:
    """Put a supernet or a cell on the workload's device, weights and image-shaped inputs in the side's layout."""
    module.to(workload.device, workload.parameter_dtype).to(memory_format=side.layout)

    def lay_out(_: nn.Module, args: tuple) -> tuple:
        images = [isinstance(a, Tensor) and a.dim() == 4 for a in args]
        return tuple(a.contiguous(memory_format=side.layout) if i else a for a, i in zip(args, images, strict=True))

    module.register_forward_pre_hook(lay_out)


def resident_batch(workload: Placed, classes: int, seed: int) -> Batch:
    """Random images, labels, numbers and flips, drawn on the CPU and left on the workload's device."""
    N, S, generator = workload.batch, workload.image_size, torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    images = whole(256, N, S, S, 3).to(torch.uint8)
    return Batch(images, whole(classes, N), whole(2**20, N), whole(2, N).bool()).to(workload.device)


def capture(run: Run) -> Run:
    """`run` as a CUDA graph; a call replays it. `run` may not read the device, and is called three times to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
