"""The formulas of DARTS, PC-DARTS and MAE-NAS, written out: what the library is judged against.

Written from the papers and the public codebases' semantics, not from the library, and imports nothing of it. Plain tensor
arithmetic: padding and shifted slices for every stencil, einsum for every 1x1, mean and variance for batch norm, index
formulas for the shuffle and the upsampling. Slow, for float64 and small shapes; gradients through torch.autograd.

Notation: N images, C channels, H W pixels, k the partial-channel divisor, e an edge of a cell (0..13), j a node's input.
Names of weights and buffers are the ones quark0/darts and PC-DARTS give them: `theta` maps name -> weight, `stats` maps
name of a batch norm -> (running mean, running variance), each (C,).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

S0 = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
EPS = 1e-5  # of batch norm
KINDS = ("normal", "reduce")
NODES = 4
OFFSETS = (0, 2, 5, 9)  # the first edge of each node
EDGES = 14

Stats = dict[str, tuple[Tensor, Tensor]]


# ------------------------------------------------------------------------------------------------- random words

CHANNELS, MASK = 5, 4  # purposes
TRAIN, VAL, EVAL = 0, 1, 2  # streams


def philox(seed: int, counter: Sequence[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011) in whole numbers: key = the seed's low and high word, four words out."""
    word = 0xFFFFFFFF
    a, b, c, d = counter
    low, high = seed & word, seed >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ low, right & word, (left >> 32) ^ d ^ high, left & word
        low, high = (low + 0x9E3779B9) & word, (high + 0xBB67AE85) & word
    return [a, b, c, d]


def chosen(seed: int, stream: int, step: int, index: int, purpose: int, count: int, n: int) -> list[int]:
    """The n of `count` things with the smallest (word, thing): counter = (word / 4, index, step, purpose + 256 stream)."""
    words = [w for block in range(-(-count // 4)) for w in philox(seed, (block, index, step, purpose + 256 * stream))]
    return sorted(sorted(range(count), key=lambda i: (words[i], i))[:n])


# ---------------------------------------------------------------------------------------------------- stencils


def padded(x: Tensor, pad: int, value: float) -> Tensor:
    """Put x (N, C, H, W) inside a border of `pad` pixels of `value`."""
    n, c, h, w = x.shape
    out = x.new_full((n, c, h + 2 * pad, w + 2 * pad), value)
    out[:, :, pad : pad + h, pad : pad + w] = x
    return out


def taps(x: Tensor, size: int, stride: int, pad: int, dilation: int, value: float) -> list[tuple[int, int, Tensor]]:
    """The shifted images of a size x size window, row by row: (dy, dx, (N, C, H', W'))."""
    high, wide = ((d + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for d in x.shape[2:])
    x = padded(x, pad, value)
    out = []
    for dy in range(size):
        for dx in range(size):
            top, left = dy * dilation, dx * dilation
            view = x[:, :, top : top + stride * (high - 1) + 1 : stride, left : left + stride * (wide - 1) + 1 : stride]
            out.append((dy, dx, view))
    return out


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def depthwise(x: Tensor, weight: Tensor, stride: int, pad: int, dilation: int) -> Tensor:
    """Convolve by weight (C, 1, s, s): each channel with its own kernel, zeros outside."""
    out: Tensor | float = 0.0
    for dy, dx, view in taps(x, weight.shape[-1], stride, pad, dilation, 0.0):
        out = out + view * weight[:, 0, dy, dx].reshape(1, -1, 1, 1)
    return out


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by weight (C', C, 1, 1)."""
    return torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0])


def conv3x3(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve by weight (C', C, 3, 3), one pixel of zeros around."""
    out: Tensor | float = 0.0
    for dy, dx, view in taps(x, 3, stride, 1, 1, 0.0):
        out = out + torch.einsum("nchw,oc->nohw", view, weight[:, :, dy, dx])
    return out


def max_pool(x: Tensor, size: int, stride: int, pad: int) -> Tensor:
    """The largest of the window; of equal ones the first in row-major order gets the gradient."""
    views = [view for _, _, view in taps(x, size, stride, pad, 1, -math.inf)]
    best = views[0]
    for view in views[1:]:
        best = torch.where(view > best, view, best)
    return best


def avg_pool(x: Tensor, stride: int) -> Tensor:
    """3x3, padding not counted."""
    total = sum(view for _, _, view in taps(x, 3, stride, 1, 1, 0.0))
    count = sum(view for _, _, view in taps(torch.ones_like(x), 3, stride, 1, 1, 0.0))
    return total / count


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, align_corners=False: output pixel i looks at (i + 1/2) / factor - 1/2, not before the first pixel."""
    for axis in (2, 3):
        old = x.shape[axis]
        place = [max((i + 0.5) / factor - 0.5, 0.0) for i in range(old * factor)]
        low = [math.floor(p) for p in place]
        high = [min(i + 1, old - 1) for i in low]
        share = x.new_tensor([p - i for p, i in zip(place, low, strict=True)])
        share = share.reshape([-1 if a == axis else 1 for a in range(4)])
        at = [x.select(axis, i) for i in range(old)]
        below = torch.stack([at[i] for i in low], dim=axis)
        above = torch.stack([at[i] for i in high], dim=axis)
        x = below * (1 - share) + above * share
    return x


def shuffle(x: Tensor, k: int) -> Tensor:
    """Output channel c is input channel (c mod k) * (C / k) + c div k."""
    channels = x.shape[1]
    return torch.stack([x[:, (c % k) * (channels // k) + c // k] for c in range(channels)], dim=1)


def softmax(row: Tensor) -> Tensor:
    up = torch.exp(row - row.detach().max())
    return up / up.sum()


# -------------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Net:
    """What the formulas need to know of a search network.

    candidates: for each kind of cell the names for each of the 14 edges; channels: for each cell and edge the indices of the
    channels that pass through the operations and stay in their places (Eq. 2), None for the first C/k and a shuffle.
    """

    C: int
    layers: int
    k: int = 1
    stem: str = "cifar"
    candidates: dict[str, tuple[tuple[str, ...], ...]] | None = None

    def names(self, kind: str, edge: int) -> tuple[str, ...]:
        return S0 if self.candidates is None else self.candidates[kind][edge]

    def reductions(self) -> tuple[int, int]:
        return self.layers // 3, 2 * self.layers // 3

    def kind(self, cell: int) -> str:
        return "reduce" if cell in self.reductions() else "normal"

    def width(self, cell: int) -> int:
        return self.C * 2 ** sum(cell >= r for r in self.reductions())


@dataclass
class Run:
    """One forward: which weights, which statistics, which mode; collects how the running statistics move."""

    theta: dict[str, Tensor]
    stats: Stats
    train: bool = True
    tracked: bool = True  # False: batch statistics also in eval mode
    moved: Stats | None = None

    def norm(self, x: Tensor, name: str) -> Tensor:
        """(x - mean) / sqrt(var + eps), times and plus the affine parameters where there are any."""
        if self.train or not self.tracked:
            m = x.numel() / x.shape[1]
            mean = x.sum((0, 2, 3)) / m
            var = ((x - mean.reshape(1, -1, 1, 1)) ** 2).sum((0, 2, 3)) / m
            if self.tracked:
                old_mean, old_var = self.stats[name]
                if self.moved is None:
                    self.moved = {}
                assert name not in self.moved, f"{name} twice in one forward"
                moved = 0.9 * old_mean + 0.1 * mean, 0.9 * old_var + 0.1 * var * m / (m - 1)
                self.moved[name] = moved[0].detach(), moved[1].detach()
        else:
            mean, var = self.stats[name]
        x = (x - mean.reshape(1, -1, 1, 1)) / torch.sqrt(var.reshape(1, -1, 1, 1) + EPS)
        if f"{name}.weight" in self.theta:
            x = x * self.theta[f"{name}.weight"].reshape(1, -1, 1, 1) + self.theta[f"{name}.bias"].reshape(1, -1, 1, 1)
        return x

    def factorized_reduce(self, x: Tensor, name: str) -> Tensor:
        x = relu(x)
        first = pointwise(x[:, :, 0::2, 0::2], self.theta[f"{name}.conv_1.weight"])
        second = pointwise(x[:, :, 1::2, 1::2], self.theta[f"{name}.conv_2.weight"])
        return self.norm(torch.cat([first, second], dim=1), f"{name}.bn")

    def candidate(self, x: Tensor, kind: str, name: str, stride: int) -> Tensor:
        """Candidate `kind` of DARTS; its weights' names begin with name."""
        if kind == "none":
            return x[:, :, ::stride, ::stride] * 0.0
        if kind == "max_pool_3x3":
            return self.norm(max_pool(x, 3, stride, 1), f"{name}.1")
        if kind == "avg_pool_3x3":
            return self.norm(avg_pool(x, stride), f"{name}.1")
        if kind == "skip_connect":
            return x if stride == 1 else self.factorized_reduce(x, name)
        size = int(kind[-1])
        w = {j: self.theta.get(f"{name}.op.{j}.weight") for j in (1, 2, 5, 6)}
        if kind.startswith("dil_conv"):
            x = depthwise(relu(x), w[1], stride, size - 1, 2)
            return self.norm(pointwise(x, w[2]), f"{name}.op.3")
        assert kind.startswith("sep_conv"), kind
        x = depthwise(relu(x), w[1], stride, size // 2, 1)
        x = self.norm(pointwise(x, w[2]), f"{name}.op.3")
        x = depthwise(relu(x), w[5], 1, size // 2, 1)
        return self.norm(pointwise(x, w[6]), f"{name}.op.7")

    def edge(
        self, x: Tensor, names: Sequence[str], weights: Tensor, name: str, stride: int, k: int, channels: Tensor | None
    ) -> Tensor:
        """sum_j weights[j] * o_j over C/k of the channels, the others around the operations (PC-DARTS, Eq. 2)."""
        width = x.shape[1]
        chosen = list(range(width // k)) if channels is None else [int(c) for c in channels]
        others = [c for c in range(width) if c not in chosen]
        part = x[:, chosen]
        mixed: Tensor | float = 0.0
        for j, kind in enumerate(names):
            mixed = mixed + weights[j] * self.candidate(part, kind, f"{name}._ops.{j}", stride)
        if not others:
            return mixed
        bypass = x[:, others]
        if stride == 2:
            bypass = max_pool(bypass, 2, 2, 0)
        if channels is None:
            return shuffle(torch.cat([mixed, bypass], dim=1), k)
        out: list[Tensor] = [torch.empty(0)] * width
        for place, c in enumerate(chosen):
            out[c] = mixed[:, place]
        for place, c in enumerate(others):
            out[c] = bypass[:, place]
        return torch.stack(out, dim=1)

    def cell(
        self,
        net: Net,
        i: int,
        s0: Tensor,
        s1: Tensor,
        rows: Sequence[Tensor],
        beta: Sequence[Tensor] | Tensor | None,
        channels: Sequence[Tensor] | None,
    ) -> Tensor:
        kind, name = net.kind(i), f"cells.{i}"
        if (net.kind(i - 1) == "reduce") if i > 0 else (net.stem == "imagenet"):
            first = self.factorized_reduce(s0, f"{name}.preprocess0")
        else:
            first = self.relu_conv_bn(s0, f"{name}.preprocess0")
        states = [first, self.relu_conv_bn(s1, f"{name}.preprocess1")]
        for node in range(NODES):
            total: Tensor | float = 0.0
            for j in range(node + 2):
                e = OFFSETS[node] + j
                stride = 2 if kind == "reduce" and j < 2 else 1
                on = None if channels is None else channels[e]
                y = self.edge(states[j], net.names(kind, e), rows[e], f"{name}._ops.{e}", stride, net.k, on)
                total = total + (y if beta is None else beta[e] * y)
            states.append(total)
        return torch.cat(states[2:], dim=1)

    def relu_conv_bn(self, x: Tensor, name: str) -> Tensor:
        return self.norm(pointwise(relu(x), self.theta[f"{name}.op.1.weight"]), f"{name}.op.2")

    def stem(self, kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if kind == "cifar":
            x = self.norm(conv3x3(x, self.theta["stem.0.weight"], 1), "stem.1")
            return x, x
        x = relu(self.norm(conv3x3(x, self.theta["stem0.0.weight"], 2), "stem0.1"))
        s0 = self.norm(conv3x3(x, self.theta["stem0.3.weight"], 2), "stem0.4")
        s1 = self.norm(conv3x3(relu(s0), self.theta["stem1.1.weight"], 2), "stem1.2")
        return s0, s1

    def network(
        self,
        net: Net,
        images: Tensor,
        rows: dict[str, Sequence[Tensor]],
        betas: dict[str, Tensor] | None,
        channels: Sequence[Sequence[Tensor]] | None = None,
    ) -> list[Tensor]:
        """The output of every cell. rows[kind][e]: the weights of edge e's candidates; betas[kind] (14,): of its edges."""
        s0, s1 = self.stem(net.stem, images)
        outs = []
        for i in range(net.layers):
            kind = net.kind(i)
            on = None if channels is None else channels[i]
            s0, s1 = s1, self.cell(net, i, s0, s1, rows[kind], None if betas is None else betas[kind], on)
            outs.append(s1)
        return outs

    def taps(self, net: Net, *args, **kwargs) -> list[Tensor]:
        """The output of the last cell of each stage: F1, F2, F3."""
        outs = self.network(net, *args, **kwargs)
        first, second = net.reductions()
        return [outs[first - 1], outs[second - 1], outs[-1]]


def random_channels(net: Net, seed: int, stream: int, step: int) -> list[list[Tensor]]:
    """For each cell and edge the C/k channels that pass through the operations at this step; keyed by 14 * cell + edge."""
    out = []
    for i in range(net.layers):
        width = net.width(i)
        keys = range(i * EDGES, (i + 1) * EDGES)
        out.append([torch.tensor(chosen(seed, stream, step, e, CHANNELS, width, width // net.k)) for e in keys])
    return out


def edge_rows(alpha: Tensor, net: Net, kind: str) -> list[Tensor]:
    """The softmax over the candidates that edge e has: the first entries of row e."""
    return [softmax(alpha[e, : len(net.names(kind, e))]) for e in range(EDGES)]


def edge_betas(beta: Tensor) -> Tensor:
    """The softmax inside each node's slice: 0:2, 2:5, 5:9, 9:14."""
    return torch.cat([softmax(beta[0:2]), softmax(beta[2:5]), softmax(beta[5:9]), softmax(beta[9:14])])


# ----------------------------------------------------------------------------- names and shapes of a checkpoint


def checkpoint(net: Net, classes: int | None) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """({name of a weight: shape}, {name of a batch norm: channels}) of the search network that was saved.

    Of quark0/darts (k = 1, CIFAR stem) and PC-DARTS (k > 1, both stems). The convolutions have no bias, the batch norms of
    cells no affine parameters, those of stems do; the classifier is a linear layer with bias (None: left out).
    """
    weights: dict[str, tuple[int, ...]] = {}
    norms: dict[str, int] = {}

    def norm(name: str, c: int, affine: bool = False) -> None:
        norms[name] = c
        if affine:
            weights[f"{name}.weight"] = weights[f"{name}.bias"] = (c,)

    def reduce(name: str, c_in: int, c_out: int) -> None:
        weights[f"{name}.conv_1.weight"] = weights[f"{name}.conv_2.weight"] = (c_out // 2, c_in, 1, 1)
        norm(f"{name}.bn", c_out)

    def relu_conv_bn(name: str, c_in: int, c_out: int) -> None:
        weights[f"{name}.op.1.weight"] = (c_out, c_in, 1, 1)
        norm(f"{name}.op.2", c_out)

    wide = 3 * net.C
    if net.stem == "cifar":
        weights["stem.0.weight"] = (wide, 3, 3, 3)
        norm("stem.1", wide, affine=True)
    else:
        weights["stem0.0.weight"] = (wide // 2, 3, 3, 3)
        norm("stem0.1", wide // 2, affine=True)
        weights["stem0.3.weight"] = (wide, wide // 2, 3, 3)
        norm("stem0.4", wide, affine=True)
        weights["stem1.1.weight"] = (wide, wide, 3, 3)
        norm("stem1.2", wide, affine=True)

    before, last = wide, wide
    for i in range(net.layers):
        kind, c = net.kind(i), net.width(i)
        halves = net.stem == "imagenet" if i == 0 else net.kind(i - 1) == "reduce"
        (reduce if halves else relu_conv_bn)(f"cells.{i}.preprocess0", before, c)
        relu_conv_bn(f"cells.{i}.preprocess1", last, c)
        part = c // net.k
        for node in range(NODES):
            for j in range(node + 2):
                e = OFFSETS[node] + j
                for position, candidate in enumerate(net.names(kind, e)):
                    name = f"cells.{i}._ops.{e}._ops.{position}"
                    if "pool" in candidate:
                        norm(f"{name}.1", part)
                    elif candidate == "skip_connect" and kind == "reduce" and j < 2:
                        reduce(name, part, part)
                    elif "conv" in candidate:
                        size = int(candidate[-1])
                        for half in (1, 5) if candidate.startswith("sep") else (1,):
                            weights[f"{name}.op.{half}.weight"] = (part, 1, size, size)
                            weights[f"{name}.op.{half + 1}.weight"] = (part, part, 1, 1)
                            norm(f"{name}.op.{half + 2}", part)
        before, last = last, 4 * c
    if classes is not None:
        weights["classifier.weight"], weights["classifier.bias"] = (classes, last), (classes,)
    return weights, norms


def random_checkpoint(net: Net, classes: int | None, seed: int) -> tuple[dict[str, Tensor], Stats]:
    """Generic weights and statistics, float64: kernels of the size a fan-in rule gives, affine scales near one."""
    g = torch.Generator().manual_seed(seed)
    shapes, norms = checkpoint(net, classes)
    theta = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=g, dtype=torch.float64)
        if len(shape) > 1:
            value = value * math.prod(shape[1:]) ** -0.5
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        theta[name] = value
    stats = {
        name: (
            0.3 * torch.randn(c, generator=g, dtype=torch.float64),
            0.5 + torch.rand(c, generator=g, dtype=torch.float64),
        )
        for name, c in norms.items()
    }
    return theta, stats


def flat_checkpoint(theta: dict[str, Tensor], stats: Stats, batches: int | None = 0) -> dict[str, Tensor]:
    """The state_dict that torch.save would have written; batches None: as torch 0.3 did, without num_batches_tracked."""
    out = {name: value.clone() for name, value in theta.items()}
    for name, (mean, var) in stats.items():
        out[f"{name}.running_mean"], out[f"{name}.running_var"] = mean.clone(), var.clone()
        if batches is not None:
            out[f"{name}.num_batches_tracked"] = torch.tensor(batches)
    return out


def split(flat: dict[str, Tensor]) -> tuple[dict[str, Tensor], Stats]:
    """The inverse of flat_checkpoint: (theta, stats) of a state_dict, as copies."""
    norms = [name.removesuffix(".running_mean") for name in flat if name.endswith(".running_mean")]
    stats = {name: (flat[f"{name}.running_mean"].clone(), flat[f"{name}.running_var"].clone()) for name in norms}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return {n: t.detach().clone() for n, t in flat.items() if n.split(".")[-1] not in buffers}, stats


# --------------------------------------------------------------------------------------------------- objectives


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over images of -log softmax at the label."""
    top = [row.detach().max() for row in logits]
    losses = [torch.log(torch.exp(r - m).sum()) + m - r[int(y)] for r, m, y in zip(logits, top, labels, strict=True)]
    return sum(losses) / len(labels)


def top(logits: Tensor, labels: Tensor, n: int) -> int:
    """How many images have their label among the n largest logits."""
    return sum(int(y) in sorted(range(len(row)), key=lambda c: -row[c])[:n] for row, y in zip(logits, labels, strict=True))


def head(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The mean over pixels, then a linear layer: (N, classes)."""
    return (feature.sum((2, 3)) / (feature.shape[2] * feature.shape[3])) @ weight.T + bias


def decoder(
    features: Sequence[Tensor],
    aligns: Sequence[tuple[Tensor, Tensor]],
    linear: tuple[Tensor, Tensor],
    image_size: int,
) -> Tensor:
    """MAE-NAS, Eq. 3, literally: Linear(sum_l Up(Conv_l F_l, image / feature)), (N, 3, S, S)."""
    total: Tensor | float = 0.0
    for feature, (weight, bias) in zip(features, aligns, strict=True):
        aligned = pointwise(feature, weight) + bias.reshape(1, -1, 1, 1)
        total = total + upsample(aligned, image_size // feature.shape[2])
    weight, bias = linear
    return torch.einsum("nchw,oc->nohw", total, weight.reshape(3, -1)) + bias.reshape(1, -1, 1, 1)


def pixel_mask(mask: Tensor, patch: int) -> Tensor:
    """Mask of pixels (N, H, W) from one of patches (N, H / patch, W / patch)."""
    n, rows, cols = mask.shape
    out = torch.zeros(n, rows * patch, cols * patch, dtype=torch.bool)
    for i in range(n):
        for y in range(rows * patch):
            for x in range(cols * patch):
                out[i, y, x] = bool(mask[i, y // patch, x // patch])
    return out


def masked_patches(seed: int, stream: int, step: int, index: Sequence[int], side: int, ratio: float) -> Tensor:
    """Which floor(ratio * P + 1/2) of the P = side * side patches of each image are hidden: bool (N, side, side)."""
    n = math.floor(ratio * side * side + 0.5)
    out = torch.zeros(len(index), side, side, dtype=torch.bool)
    for i, key in enumerate(index):
        for patch in chosen(seed, stream, step, int(key), MASK, side * side, n):
            out[i, patch // side, patch % side] = True
    return out


def masked_loss(prediction: Tensor, target: Tensor, pixels: Tensor, power: int) -> Tensor:
    """Sum over masked pixels and colours of |prediction - target|^power / (masked pixels * 3)."""
    chosen = pixels[:, None].expand_as(prediction)
    difference = prediction[chosen] - target[chosen]
    total = (difference.abs() if power == 1 else difference * difference).sum()
    return total / (3 * int(pixels.sum()))


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float], flips: Sequence[bool]) -> Tensor:
    """uint8 (N, H, W, 3) -> float64 (N, 3, H, W): (x / 255 - mean) / std, mirrored where asked."""
    out = []
    for image, flip in zip(images, flips, strict=True):
        x = image.to(torch.float64) / 255
        x = torch.stack([(x[:, :, c] - mean[c]) / std[c] for c in range(3)])
        width = x.shape[2]
        out.append(torch.stack([x[:, :, width - 1 - i] for i in range(width)], dim=2) if flip else x)
    return torch.stack(out)


# ------------------------------------------------------------------------------------------------ bilevel search

Named = dict[str, Tensor]
Loss = Callable[[Named, Named, object], Tensor]  # (weights, architecture, batch) -> loss


def gradients(loss: Tensor, of: Named) -> Named:
    grads = torch.autograd.grad(loss, list(of.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(of.items(), grads, strict=True)}


def leaves(of: Named) -> Named:
    return {n: t.detach().clone().requires_grad_() for n, t in of.items()}


def first_order(loss: Loss, theta: Named, arch: Named, valid: object) -> Named:
    """dL_valid / dalpha at the present weights."""
    arch = leaves(arch)
    return gradients(loss(theta, arch, valid), arch)


def second_order(
    loss: Loss,
    theta: Named,
    arch: Named,
    train: object,
    valid: object,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    buffers: Named | None,
    difference: float = 0.01,
) -> Named:
    """DARTS, Eq. 7 and 8.

    theta' = theta - eta (momentum * buffer + dL_train + wd theta); v = dL_valid(theta') / dtheta'; R = difference / ||v||;
    dL_valid(theta') / dalpha - eta (dL_train(theta + R v) - dL_train(theta - R v)) / dalpha / (2 R).
    """
    theta, arch = leaves(theta), leaves(arch)
    g = gradients(loss(theta, arch, train), theta)
    moved = {}
    for n, t in theta.items():
        buffer = torch.zeros_like(t) if buffers is None else momentum * buffers[n]
        moved[n] = t - eta * (buffer + g[n] + weight_decay * t)
    moved = leaves(moved)
    both = gradients(loss(moved, arch, valid), {**{f"theta {n}": t for n, t in moved.items()}, **arch})
    v = {n: both[f"theta {n}"] for n in theta}
    r = difference / math.sqrt(sum(float((t * t).sum()) for t in v.values()))
    plus = gradients(loss({n: (t + r * v[n]).detach() for n, t in theta.items()}, arch, train), arch)
    minus = gradients(loss({n: (t - r * v[n]).detach() for n, t in theta.items()}, arch, train), arch)
    return {n: both[n] - eta * (plus[n] - minus[n]) / (2 * r) for n in arch}


def clipped(grads: Named, limit: float) -> Named:
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    scale = min(1.0, limit / (norm + 1e-6))
    return {n: g * scale for n, g in grads.items()}


def sgd(
    theta: Named, grads: Named, buffers: Named | None, *, lr: float, momentum: float, weight_decay: float
) -> tuple[Named, Named]:
    """The new weights and momentum buffers; the first buffer is the decayed gradient itself."""
    step = {n: grads[n] + weight_decay * t for n, t in theta.items()}
    buffers = step if buffers is None else {n: momentum * buffers[n] + step[n] for n in theta}
    return {n: t - lr * buffers[n] for n, t in theta.items()}, buffers


def adam(
    values: Named, grads: Named, state: tuple[int, Named, Named] | None, *, lr: float, weight_decay: float
) -> tuple[Named, tuple[int, Named, Named]]:
    """Adam with betas (0.5, 0.999), eps 1e-8, weight decay added to the gradient."""
    zeros = {n: torch.zeros_like(t) for n, t in values.items()}
    t, first, second = state or (0, zeros, zeros)
    t += 1
    g = {n: grads[n] + weight_decay * x for n, x in values.items()}
    first = {n: 0.5 * first[n] + 0.5 * g[n] for n in values}
    second = {n: 0.999 * second[n] + 0.001 * g[n] ** 2 for n in values}
    new = {}
    for n, x in values.items():
        new[n] = x - lr * (first[n] / (1 - 0.5**t)) / (torch.sqrt(second[n] / (1 - 0.999**t)) + 1e-8)
    return new, (t, first, second)


# ----------------------------------------------------------------------------------------------------- selection


def derive(weights: Sequence[Sequence[float]], names: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """weights[e][j] of candidate names[e][j]: each node keeps two edges, strongest first, with their best candidate.

    The strength of an edge is its largest weight that is not none's; of equal ones the earlier edge, candidate first.
    """
    genes = []
    for node in range(NODES):
        ranked = []
        for j in range(node + 2):
            e = OFFSETS[node] + j
            best, gene = -math.inf, None
            for weight, name in zip(weights[e], names[e], strict=True):
                if name != "none" and weight > best:
                    best, gene = weight, name
            ranked.append((-best, j, gene))
        ranked.sort(key=lambda entry: entry[:2])
        genes += [(gene, j) for _, j, gene in ranked[:2]]
    return genes


# -------------------------------------------------------------------------------------------------------- checks


def assert_close(got: Tensor, want: Tensor, what: str = "tensor", tol: float = 1e-9) -> None:
    """Agreement relative to the wanted tensor's largest entry; a wanted tensor of zeros is met exactly."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, not {want.dtype}"
    assert bool(torch.isfinite(want).all()), f"{what}: the reference itself is not finite"
    got, want = got.detach(), want.detach()
    error, scale = float((got - want).abs().max()), float(want.abs().max())
    assert error <= tol * scale, f"{what}: off by {error:.3e}, largest entry {scale:.3e}"


def assert_all_close(got: Named, want: Named, tol: float = 1e-9) -> None:
    assert set(got) == set(want), f"names differ: {sorted(set(got) ^ set(want))[:6]}"
    assert want, "nothing to compare"
    for name in want:
        assert_close(got[name], want[name], name, tol)
