"""A network of discrete cells as DARTS' codebases retrain it, in small: single operations, drop path, an auxiliary head.

Notation: N images, C channels of a node, H W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.driver import default_dtype
from tests.zoo.operations import Identity, Zero, convolution, pool

Genes = tuple[tuple[str, int], ...]  # operation and source, two for each node
NORMAL: Genes = (("sep_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 2), ("dil_conv_5x5", 1))
REDUCE: Genes = (("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("skip_connect", 1), ("max_pool_bn", 2))


def separable(C: int, k: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    depthwise = convolution(C, C, k, stride, dilation * (k // 2), dilation, groups=C)
    return [nn.ReLU(inplace=False), depthwise, convolution(C, C, 1), nn.BatchNorm2d(C)]


def preprocess(C_in: int, C: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=False), convolution(C_in, C, 1), nn.BatchNorm2d(C))


class Halving(nn.Module):
    """FactorizedReduce with affine parameters."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.halves = nn.ModuleList(convolution(C_in, C_out // 2, 1, stride=2) for _ in range(2))
        self.norm = nn.BatchNorm2d(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.norm(torch.cat([self.halves[0](x), self.halves[1](x[:, :, 1:, 1:])], dim=1))


OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda C, stride: Zero(stride),
    "skip_connect": lambda C, stride: Identity() if stride == 1 else Halving(C, C),
    "max_pool_3x3": lambda C, stride: pool("max_pool_3x3", stride),
    "avg_pool_3x3": lambda C, stride: pool("avg_pool_3x3", stride),
    "max_pool_bn": lambda C, stride: nn.Sequential(pool("max_pool_3x3", stride), nn.BatchNorm2d(C, affine=False)),
    "sep_conv_3x3": lambda C, stride: nn.Sequential(*separable(C, 3, stride), *separable(C, 3, 1)),
    "sep_conv_7x7": lambda C, stride: nn.Sequential(*separable(C, 7, stride), *separable(C, 7, 1)),
    "dil_conv_5x5": lambda C, stride: nn.Sequential(*separable(C, 5, stride, 2)),
}


def drop_path(x: Tensor, probability: float) -> Tensor:
    keep = 1.0 - probability
    return x.div_(keep).mul_(x.new_empty(len(x), 1, 1, 1).bernoulli_(keep))


class Cell(nn.Module):
    def __init__(self, genes: Genes, concat: tuple[int, ...], C_in: tuple[int, int], C: int, reduction: bool, halve: bool):
        super().__init__()
        self.before0 = Halving(C_in[0], C) if halve else preprocess(C_in[0], C)
        self.before1 = preprocess(C_in[1], C)
        self.sources = [source for _, source in genes]
        self.concat = concat
        self.ops = nn.ModuleList(OPS[name](C, 2 if reduction and source < 2 else 1) for name, source in genes)

    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        states = [self.before0(s0), self.before1(s1)]
        for node in range(0, len(self.sources), 2):
            states.append(self.join([self.run(i, states, probability) for i in (node, node + 1)]))
        return torch.cat([states[i] for i in self.concat], dim=1)

    def run(self, number: int, states: list[Tensor], probability: float) -> Tensor:
        op = self.ops[number]
        h = op(states[self.sources[number]])
        return drop_path(h, probability) if self.training and probability > 0 and not isinstance(op, Identity) else h

    def join(self, terms: list[Tensor]) -> Tensor:
        return terms[0] + terms[1]


class Network(nn.Module):
    """Three cells: normal, reduction, and one that halves its first input. Returns logits and auxiliary ones (None in eval)."""

    def __init__(self, cell: type[Cell] = Cell, normal: Genes = NORMAL, reduce: Genes = REDUCE, C: int = 4) -> None:
        super().__init__()
        self.drop_path_prob = 0.0
        self.stem = nn.Sequential(convolution(3, C, 3, padding=1), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList(
            [
                cell(normal, (3, 2), (C, C), C, False, False),
                cell(reduce, (2, 3), (C, 2 * C), 2 * C, True, False),
                cell(normal, (1, 2, 3), (2 * C, 4 * C), 2 * C, False, True),
            ]
        )
        self.auxiliary = nn.Sequential(nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Conv2d(4 * C, 5, 2))
        self.classifier = nn.Linear(6 * C, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        auxiliary = None
        s0 = s1 = self.stem(x)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == 1 and self.training:
                auxiliary = self.auxiliary(s1).flatten(1)
        return self.classifier(s1.mean((2, 3))), auxiliary


def network(cell: type[Cell] = Cell, **options: Genes) -> Network:
    """A network in float64 with random scales and shifts, the same in every call."""
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
        torch.manual_seed(0)
        made = Network(cell, **options)
        for m in made.modules():
            if isinstance(m, nn.BatchNorm2d) and m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias)
        return made


def outcome(model: Network, training: bool = True, probability: float = 0.4, N: int = 4) -> dict[str, Tensor]:
    """Outputs, gradients, buffers and the state of the random numbers after a forward and backward of the same images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.randn(N, 3, 8, 8, dtype=torch.float64)
        model.train(training).zero_grad()
        model.drop_path_prob = probability
        outs = [out for out in model(x) if out is not None]
        sum((out * out.detach().cos()).sum() for out in outs).backward()
        named = {f"output {i}": out.detach() for i, out in enumerate(outs)} | {"random": torch.get_rng_state()}
    named |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return named | {n: b.clone() for n, b in model.named_buffers()}
