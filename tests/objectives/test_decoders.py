"""The single-scale decoder and MIM-DARTS' against loops over pixels; exact shapes."""

import pytest
import torch
from torch import Tensor

from fastdarts.objectives import MimDecoder, SingleScaleDecoder
from fastdarts.ops.masked_loss import upsampled_sum
from tests.support import naive
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


def test_single_scale_reads_last_feature_only() -> None:
    torch.manual_seed(1)
    decoder = SingleScaleDecoder((3, 5, 2), width=7).double()
    shapes = {n: tuple(p.shape) for n, p in decoder.named_parameters()}
    assert shapes == {"align.0.weight": (7, 2, 1, 1), "align.0.bias": (7,), "linear.weight": (3, 7), "linear.bias": (3,)}
    features = [torch.randn(2, c, s, s, dtype=torch.float64, requires_grad=True) for c, s in ((3, 16), (5, 8), (2, 4))]
    aligns = [(decoder.align[0].weight, decoder.align[0].bias)]
    want = naive.decoder(features[2:], aligns, (decoder.linear.weight, decoder.linear.bias), 16)
    got = upsampled_sum(*decoder(features), (16, 16))
    assert_close(got, want, "prediction")
    wanted = dict(decoder.named_parameters()) | {"F3": features[2]}
    cotangent = torch.randn_like(got)
    grads = [dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True)) for y in (got, want)]
    assert_all_close(*grads)


# ---------------------------------------------------------------------------------------------------- MIM-DARTS


def test_mim_layer_shapes() -> None:
    """3x3, 1x1, twice (3x3, BN, transposed), 3x3 to RGB; bias everywhere but before BN."""
    decoder = MimDecoder(256, 4)
    shapes = {n: tuple(p.shape) for n, p in decoder.named_parameters()}
    assert shapes == {
        "spatial.weight": (64, 256, 3, 3),
        "spatial.bias": (64,),
        "mixing.weight": (64, 64, 1, 1),
        "mixing.bias": (64,),
        **{f"filters.{i}.weight": (64, 64, 3, 3) for i in range(2)},
        **{f"norms.{i}.{n}": (64,) for i in range(2) for n in ("weight", "bias")},
        **{f"enlarge.{i}.weight": (64, 64, 4, 4) for i in range(2)},
        **{f"enlarge.{i}.bias": (64,) for i in range(2)},
        "colours.weight": (3, 64, 3, 3),
        "colours.bias": (3,),
    }


@pytest.mark.parametrize(
    ("factor", "strides", "reached"),
    [(1, (1, 1), 1), (2, (2, 1), 2), (4, (2, 2), 4), (8, (4, 2), 8), (32, (8, 4), 32), (6, (2, 2), 4), (12, (4, 2), 8)],
)
def test_strides_multiply_to_factor(factor: int, strides: tuple[int, int], reached: int) -> None:
    """Powers of two, the larger first; a resize to the image's size where that is no power of two."""
    decoder = MimDecoder(2, factor, width=3)
    assert tuple(layer.stride[0] for layer in decoder.enlarge) == strides
    sizes = []
    decoder.colours.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    for layer in decoder.enlarge:
        layer.register_forward_hook(lambda _, args, out: sizes.append(out.shape))
    image = decoder(torch.randn(2, 2, 2, 3), (2 * factor, 3 * factor), training=True)
    assert image.shape == (2, 3, 2 * factor, 3 * factor)
    assert [tuple(s[2:]) for s in sizes[1:]] == [(2 * reached, 3 * reached), (2 * factor, 3 * factor)]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A window around each pixel, zeros beyond the border, number by number."""
    N, C, H, W = x.shape
    r = weight.shape[2] // 2
    out = []
    for n in range(N):
        for o in range(weight.shape[0]):
            for i in range(H):
                for j in range(W):
                    terms = [
                        x[n, c, i + u, j + v] * weight[o, c, u + r, v + r]
                        for c in range(C)
                        for u in range(-r, r + 1)
                        for v in range(-r, r + 1)
                        if 0 <= i + u < H and 0 <= j + v < W
                    ]
                    out.append(sum(terms) + (0 if bias is None else bias[o]))
    return torch.stack(out).view(N, -1, H, W)


def transposed(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Each pixel stamps its weighted window around stride * its place, less a border of one."""
    N, _, H, W = x.shape
    out = bias.view(1, -1, 1, 1).repeat(N, 1, H * stride, W * stride)
    for i in range(H):
        for j in range(W):
            for u in range(weight.shape[2]):
                for v in range(weight.shape[3]):
                    y, z = i * stride + u - 1, j * stride + v - 1
                    if 0 <= y < H * stride and 0 <= z < W * stride:
                        stamp = torch.einsum("nc,co->no", x[:, :, i, j], weight[:, :, u, v])
                        place = torch.zeros(H * stride, W * stride, dtype=x.dtype)
                        place[y, z] = 1
                        out = out + stamp[:, :, None, None] * place
    return out


def norm(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    x = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_mim_matches_hand_computation(training: bool) -> None:
    """Training: the batch's statistics, the running ones moved a tenth of the way; else the running ones, left alone."""
    torch.manual_seed(2)
    decoder = MimDecoder(2, 4, width=2).double()
    with torch.no_grad():
        for p in decoder.parameters():
            p.normal_(0, 0.5)
        for layer in decoder.norms:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    before = {n: b.clone() for n, b in decoder.named_buffers()}
    feature = torch.randn(2, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    got = decoder(feature, (8, 4), training=training)
    x = conv(conv(feature, decoder.spatial.weight, decoder.spatial.bias), decoder.mixing.weight, decoder.mixing.bias)
    for i in range(2):
        y = conv(x, decoder.filters[i].weight, None)
        mean, var = before[f"norms.{i}.running_mean"], before[f"norms.{i}.running_var"]
        if training:
            moved, m = mean, y.numel() // 2
            mean = y.mean((0, 2, 3))
            var = (y - mean.view(1, 2, 1, 1)).square().mean((0, 2, 3))
            assert_close(decoder.norms[i].running_mean, 0.9 * moved + 0.1 * mean, "running mean")
            assert_close(
                decoder.norms[i].running_var, 0.9 * before[f"norms.{i}.running_var"] + 0.1 * var * m / (m - 1), "running var"
            )
        y = norm(y, decoder.norms[i].weight, decoder.norms[i].bias, mean, var)
        x = transposed(naive.relu(y), decoder.enlarge[i].weight, decoder.enlarge[i].bias, 2)
    colours = conv(x, decoder.colours.weight, decoder.colours.bias)
    want = torch.where(colours > 1, 1.0, torch.where(colours < -1, -1.0, colours))  # HardTanh
    assert 0 < int((want.abs() == 1).sum()) < want.numel()
    assert_close(got, want, "image")
    if not training:
        assert all(torch.equal(b, before[n]) for n, b in decoder.named_buffers())
    assert int(decoder.norms[0].num_batches_tracked) == int(training)
    wanted = dict(decoder.named_parameters()) | {"feature": feature}
    cotangent = torch.randn_like(got)
    grads = [dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True)) for y in (got, want)]
    assert_all_close(*grads)


class TwoRanks:
    """Another rank with the same images: a sum over the ranks is twice this one's, with its row repeated."""

    rank, size, calls = 0, 2, 0

    def sum(self, flat: Tensor) -> None:
        self.calls += 1
        flat.copy_(flat[:1].expand_as(flat) if flat.dim() == 2 else 2 * flat)


def test_mim_synchronises_statistics() -> None:
    """Two ranks with the same images see what one sees; one sum for each BatchNorm."""
    decoder, ranks = MimDecoder(2, 4, width=2).double(), TwoRanks()
    feature = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    got = decoder(feature, (8, 8), training=True, sync=ranks)
    assert ranks.calls == 2
    assert_close(got, decoder(feature, (8, 8), training=True), "image")
