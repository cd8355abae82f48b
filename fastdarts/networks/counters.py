"""Parameters and multiply-adds of a network, by the rules of the tools that published figures come from.

A multiply-add counts as one. The network is built and run on the meta device, where its layers compute sizes only.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.networks.base import DiscreteNetwork, NetworkShape
from fastdarts.networks.build import build
from fastdarts.networks.darts import WholeAvgPool
from fastdarts.networks.operations import OPERATIONS
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype

# Numbers of one image: convolutions; macs of convolutions and linear layers; bias, elements that are added a bias; norm, relu,
# elements of their outputs; pooled, elements of all pools' inputs; average, of average pools' outputs; adaptive_in and
# adaptive_out, of adaptive average pools.
Tally = Counter[str]
RULES: dict[str, tuple[Callable[[Tally], int], str]] = {
    "macs": (lambda n: n["macs"], "convolutions and linear layers: most papers, the headline"),
    "nasbench201": (lambda n: n["macs"] + n["bias"], "and the classifier's bias: NAS-Bench-201's table"),
    "ptflops": (
        lambda n: n["macs"] + n["bias"] + 2 * n["norm"] + n["relu"] + n["pooled"],
        "PC-DARTS and P-DARTS on ImageNet",
    ),
    "thop_bn2": (lambda n: _thop(n, 2), "thop of December 2019 to 2022"),
    "thop_bn4": (lambda n: _thop(n, 4), "thop before, and since 0.1.1: DARTS- on CIFAR"),
    "fvcore": (lambda n: n["macs"] + 2 * n["norm"] + n["adaptive_in"], "in evaluation mode"),
    "torch_flop_counter": (lambda n: 2 * n["macs"], "torch.utils.flop_counter: two operations a multiply-add"),
    "bn_elements": (lambda n: n["norm"], "elements that BatchNorm normalises"),
    "convolutions": (lambda n: n["convolutions"], "number of convolution layers"),
}


def count(architecture: Genotype | Architecture, shape: NetworkShape) -> dict[str, int]:
    """Return the counts of a network by name, of one image of `image_size` pixels where they depend on it.

    params                 parameters without the auxiliary head, whether or not the shape has it
    params_auxiliary       parameters of the auxiliary head, 0 for NAS-Bench-201's network
    params_with_auxiliary  their sum
    macs, ...              by RULES, without the auxiliary head

    Raises ValueError as build does, and for custom candidates, whose multiply-adds are not known.
    """
    return dict(_count(architecture, shape))


def widest(architecture: Genotype | Architecture, shape: NetworkShape, limit: int) -> NetworkShape:
    """Return the shape with the largest even `init_channels` whose `macs` are at most `limit`. Raises ValueError for none."""

    def fits(half: int) -> bool:
        return count(architecture, replace(shape, init_channels=2 * half))["macs"] <= limit

    if not fits(1):
        raise ValueError(f"{limit:,} multiply-adds: this network has more with 2 initial channels")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return replace(shape, init_channels=2 * low)


def table(counts: Mapping[str, int]) -> str:
    """Format the counts of a network, one a line, with what they are."""
    about = {name: text for name, (_, text) in RULES.items()} | {"params_auxiliary": "of the auxiliary head, for training only"}
    return "\n".join(f"{name:22}{number:15,}  {about.get(name, '')}".rstrip() for name, number in counts.items())


def multiply_adds(text: str) -> int:
    """Parse a number of multiply-adds: 600M, 0.6G, 6e8. Raises ValueError."""
    number, scale = text.strip(), {"K": 10**3, "M": 10**6, "G": 10**9}
    factor = scale.get(number[-1:].upper())
    found = float(number[:-1]) * factor if factor else float(number)
    if not 0 < found < 10**18:
        raise ValueError(f"not a number of multiply-adds: {text}")
    return round(found)


@cache
def _count(architecture: Genotype | Architecture, shape: NetworkShape) -> tuple[tuple[str, int], ...]:
    own = [op for kind in architecture.wirings() for op in architecture.operations(kind) if op not in OPERATIONS]
    if own:
        raise ValueError(f"{own[0]} is a custom candidate: its multiply-adds are unknown")
    if shape.kind != "nasbench201":
        shape = replace(shape, auxiliary=True, auxiliary_pool="adaptive")
    with torch.device("meta"):
        network = build(architecture, shape).eval()
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    auxiliary = sum(size for name, size in sizes.items() if name.startswith("auxiliary_head."))
    total = sum(sizes.values())
    counts = {"params": total - auxiliary, "params_auxiliary": auxiliary, "params_with_auxiliary": total}
    tally = _tally(network, shape.image_size)
    return tuple((counts | {name: rule(tally) for name, (rule, _) in RULES.items()}).items())


def _tally(network: DiscreteNetwork, side: int) -> Tally:
    """Count what the layers of a network on the meta device do for one image."""
    tally: Tally = Counter()

    def count_layer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        size, (x,) = output.numel(), inputs
        if isinstance(layer, nn.Conv2d | nn.Linear):
            tally["convolutions"] += isinstance(layer, nn.Conv2d)
            tally["macs"] += size * layer.weight[0].numel()
            tally["bias"] += 0 if layer.bias is None else size
        elif isinstance(layer, nn.BatchNorm2d):
            tally["norm"] += size
        elif isinstance(layer, nn.ReLU):
            tally["relu"] += size
        elif isinstance(layer, nn.AvgPool2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            adaptive = isinstance(layer, nn.AdaptiveAvgPool2d)
            tally["pooled"] += x.numel()
            tally["average"] += size * isinstance(layer, nn.AvgPool2d)
            tally["adaptive_in"] += x.numel() * adaptive
            tally["adaptive_out"] += size * adaptive

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count_layer)
            _compute_sizes_only(layer)
    with torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return tally


def _compute_sizes_only(layer: Any) -> None:
    """Let a layer return an empty tensor of its output's size: torch's own layers on the meta device take ten times as long."""
    if isinstance(layer, nn.BatchNorm2d | nn.ReLU):
        layer.forward = lambda x: x
    elif isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(layer, WholeAvgPool):
        parts = [_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")]

        def forward(x: Tensor) -> Tensor:
            sides = [
                (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
                for n, kernel, stride, pad, dilation in zip(x.shape[2:], *parts, strict=True)
            ]
            return x.new_empty(x.shape[0], getattr(layer, "out_channels", x.shape[1]), *sides)

        layer.forward = forward


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _thop(n: Tally, norm: int) -> int:
    """Count as thop, whose adaptive pools count the window's elements and one for each output element."""
    return n["macs"] + norm * n["norm"] + n["average"] + n["adaptive_in"] + n["adaptive_out"]
