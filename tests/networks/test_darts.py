"""DARTS' networks of a genotype: names, drop path, auxiliary head, sizes, and what is refused."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from fastdarts.networks import DiscreteNetwork, NetworkShape, Outputs, architecture_of, build
from fastdarts.networks.darts import DartsNetwork
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype
from tests.ops.ranks import Rank, on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")
SKIPS = [("skip_connect", 0), ("skip_connect", 1)]
MIXED = [("dil_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 2), ("skip_connect", 0)]
TRIPLES = [
    ("sep_conv_3x3", 2, 0),
    ("skip_connect", 2, 0),
    ("avg_pool_3x3", 4, 1),
    ("sep_conv_3x3", 5, 3),
    ("dil_conv_3x3", 5, 4),
]


def genotype(normal: list, reduce: list | None = None, concat: tuple[int, ...] = (2, 3)) -> Genotype:
    fields = {"normal": normal, "normal_concat": concat, "reduce": reduce or normal, "reduce_concat": concat}
    return Genotype.from_fields(fields)


def network(
    cells: Genotype, kind: str = "cifar", C: int = 4, layers: int = 3, size: int = 8, auxiliary: bool = False, **more: Any
) -> DartsNetwork:
    torch.manual_seed(0)
    made = build(cells, NetworkShape(kind, C, layers, 5, auxiliary, image_size=size, **more))
    assert isinstance(made, DartsNetwork)
    return made


def images(size: int = 8, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def names(cells: Genotype, *shape: Any, **more: Any) -> list[str]:
    with torch.device("meta"):
        return list(build(cells, NetworkShape(*shape, **more)).state_dict())


def test_darts_v2_names_match_published_files() -> None:
    cifar = names(architecture_of("DARTS_V2"), "cifar", 36, 20, 10, True, image_size=32)
    imagenet = names(architecture_of("DARTS_V2"), "imagenet", 48, 14, 1000, True, image_size=224)
    assert (len(cifar), len(imagenet)) == (1650, 1124)
    cells = {"preprocess0.op.1.weight", "preprocess1.op.2.running_var", "_ops.0.op.6.weight", "_ops.7.op.2.weight"}
    heads = {f"auxiliary_head.{name}.weight" for name in ("features.2", "features.3", "features.5", "features.6", "classifier")}
    assert {"stem.0.weight", "stem.1.bias", "classifier.bias", *heads, *(f"cells.0.{n}" for n in cells)} <= set(cifar)
    assert {"cells.7.preprocess0.conv_2.weight", "cells.7.preprocess0.bn.bias"} <= set(cifar)
    stems = {f"stem0.{n}.weight" for n in (0, 1, 3, 4)} | {f"stem1.{n}.weight" for n in (1, 2)}
    assert stems | {"cells.0.preprocess0.conv_1.weight", "cells.0.preprocess0.bn.weight"} <= set(imagenet)
    assert "auxiliary_head.features.6.weight" not in imagenet


@pytest.mark.parametrize(
    ("op", "weights", "strided"),
    [
        ("none", [], []),
        ("noise", [], []),
        ("max_pool_3x3", [], []),
        ("avg_pool_3x3", [], []),
        ("skip_connect", [], ["conv_1", "conv_2", "bn"]),
        ("sep_conv_3x3", ["op.1", "op.2", "op.3", "op.5", "op.6", "op.7"], None),
        ("sep_conv_5x5", ["op.1", "op.2", "op.3", "op.5", "op.6", "op.7"], None),
        ("sep_conv_7x7", ["op.1", "op.2", "op.3", "op.5", "op.6", "op.7"], None),
        ("dil_conv_3x3", ["op.1", "op.2", "op.3"], None),
        ("dil_conv_5x5", ["op.1", "op.2", "op.3"], None),
        ("conv_7x1_1x7", ["1", "2", "3"], None),
    ],
)
def test_operations_have_names_and_sizes(op: str, weights: list[str], strided: list[str] | None) -> None:
    """At both strides, with gradients for every weight."""
    net = network(genotype([("dil_conv_3x3", 0), (op, 1), ("dil_conv_3x3", 1), ("dil_conv_3x3", 2)]), size=16)
    for cell, wanted in ((0, weights), (1, weights if strided is None else strided)):
        prefix = f"cells.{cell}._ops.1."
        found = [name.removeprefix(prefix) for name, _ in net.named_parameters() if name.startswith(prefix)]
        assert [name.removesuffix(".weight") for name in found if name.endswith(".weight")] == wanted
        norms = [name.removesuffix(".bias") for name in found if name.endswith(".bias")]
        assert norms == [name for name in wanted if name in ("op.3", "op.7", "bn") or (op == "conv_7x1_1x7" and name == "3")]
    out = net(images(16))
    assert out.logits.shape == (3, 5) and out.auxiliary is None
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("name", "features"), [("NASNet", 80), ("AmoebaNet", 48), ("DARTS_V2", 64), ("FairDARTS_a", 48)])
def test_unequal_concats_and_any_number_of_nodes(name: str, features: int) -> None:
    net = network(architecture_of(name), layers=5, size=32, auxiliary=True)
    assert net.num_features == features == net.classifier.in_features
    logits, auxiliary = net(images(32))
    assert auxiliary is not None and logits.shape == auxiliary.shape == (3, 5)


def test_nodes_without_inputs_vanish() -> None:
    """So does a gene that reads one; the names are FairDARTS', `_ops.NODE.INPUT.GENE`."""
    net = network(genotype(TRIPLES, concat=(2, 3, 4, 5)))
    cell: Any = net.cells[0]
    assert cell.multiplier == 3 and cell.drops == 3 and net.num_features == 4 * 4 * 3
    found = {name.partition("_ops.")[2][:5] for name in cell.state_dict() if "_ops." in name}
    assert found == {"2.0.0", "5.4.0"}
    assert [list(cell._ops[node]) for node in cell._ops] == [["0"], ["1"], ["4"]] and len(cell._ops["2"]["0"]) == 2


def plain_forward(net: DartsNetwork, x: Tensor, keep: Tensor, per_node: bool) -> Tensor:
    """The network's formula with its layers, gene by gene; draws all factors at once, as a table."""
    genes = {kind: net.architecture.genes(kind) for kind in ("normal", "reduce")}
    cells: Any = net.cells
    kinds = ["reduce" if i in (len(cells) // 3, 2 * len(cells) // 3) else "normal" for i in range(len(cells))]

    def dropped(kind: str) -> list:
        if per_node:
            return list(dict.fromkeys(node for _, node, _ in genes[kind]))
        return [g for g, (op, _, state) in enumerate(genes[kind]) if op != "skip_connect" or (kind == "reduce" and state < 2)]

    table = iter(torch.bernoulli(torch.full((sum(len(dropped(k)) for k in kinds), len(x)), keep.item())))
    s0 = s1 = net.stem(x)
    for kind, cell in zip(kinds, cells, strict=True):
        masks = {key: (next(table).view(-1, 1, 1, 1) / keep).double() for key in dropped(kind)}
        states, seen = {0: cell.preprocess0(s0), 1: cell.preprocess1(s1)}, {}
        for g, (_, node, state) in enumerate(genes[kind]):
            if per_node:
                place = seen[node, state] = seen.get((node, state), -1) + 1
                out = cell._ops[str(node)][str(state)][place](states[state])
            else:
                out = cell._ops[g](states[state]) * masks.get(g, 1)
            states[node] = states.get(node, 0) + out
            if per_node and g == max(i for i, gene in enumerate(genes[kind]) if gene[1] == node):
                states[node] = states[node] * masks[node]
        s0, s1 = s1, torch.cat([states[i] for i in (2, 3, 4, 5) if i in states], 1)
    return net.classifier(s1.mean((2, 3)))


@pytest.mark.parametrize("cells", [genotype(MIXED), genotype(TRIPLES, concat=(2, 3, 4, 5))], ids=["pairs", "triples"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_drop_path_matches_formula(cells: Genotype, rate: float) -> None:
    net = network(cells).double()
    net.drop_path_rate.fill_(rate)
    x, keep = images(count=8).double(), 1 - torch.tensor(rate)
    torch.manual_seed(7)
    out = net(x).logits
    torch.manual_seed(7)
    wanted = plain_forward(net, x, keep, per_node=cells.has_triples("normal"))
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_zero_rate_and_evaluation_drop_nothing() -> None:
    net = network(genotype(MIXED))
    assert net.drop_path_rate.shape == () and net.drop_path_rate.dtype == torch.float32 and net.drop_path_rate == 0
    assert "drop_path_rate" not in net.state_dict() and "drop_path_rate" in dict(net.named_buffers())
    without = network(genotype(MIXED))
    without.drop_path, before = False, torch.get_rng_state()
    out = without(images()).logits
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(net(images()).logits, out)
    net.eval()
    out, before = net(images()).logits, torch.get_rng_state()
    net.drop_path_rate.fill_(0.9)
    assert torch.equal(net(images()).logits, out) and torch.equal(torch.get_rng_state(), before)


def test_identity_is_not_dropped_and_expectation_is_kept() -> None:
    """Skips of stride 1 draw nothing; the strided ones of the reduction cells, pools and convolutions do."""
    net = network(genotype(SKIPS, concat=(2,)), layers=6)
    cells: Any = net.cells
    assert [cell.drops for cell in cells] == [0, 0, 2, 0, 2, 0]
    net.drop_path_rate.fill_(0.3)
    torch.manual_seed(0)
    for factors, cell in zip(net.drop_path_factors(20_000), cells, strict=True):
        assert factors is not None and factors.shape == (cell.drops, 20_000, 1, 1, 1)
        assert not cell.drops or factors.unique().tolist() == pytest.approx([0, 1 / 0.7])
        assert not cell.drops or (factors.mean((1, 2, 3, 4)) - 1).abs().max() < 0.02


def test_compiled_network_is_one_graph_for_every_rate() -> None:
    """No read of a number on the host, no graph break, no second compilation when the rate changes."""
    net, counter = network(genotype(MIXED)), CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for rate in (0.0, 0.2, 0.4):
        net.drop_path_rate.fill_(rate)
        assert compiled(images()).logits.isfinite().all()
    assert counter.frame_count == 1


def test_rate_is_float32_tensor_on_device() -> None:
    net = network(genotype(MIXED))
    net.drop_path_rate.fill_(0.1)
    assert net.bfloat16().drop_path_rate == torch.tensor(0.1) and net.double().drop_path_rate.dtype == torch.float32
    empty = net.to("meta").to_empty(device="cpu")
    assert empty.drop_path_rate == 0 and empty.drop_path_rate.device.type == "cpu"
    assert "drop_path_rate" not in empty.state_dict()


@pytest.mark.parametrize(
    ("kind", "size", "pool", "fits"),
    [
        ("cifar", 32, "fixed", True),
        ("cifar", 40, "fixed", True),
        ("cifar", 28, "fixed", False),
        ("cifar", 44, "fixed", False),
        ("cifar", 8, "adaptive", True),
        ("cifar", 64, "adaptive", True),
        ("imagenet", 224, "fixed", True),
        ("imagenet", 256, "fixed", True),
        ("imagenet", 192, "fixed", False),
        ("imagenet", 288, "fixed", False),
        ("imagenet", 64, "adaptive", True),
    ],
)
def test_auxiliary_head_checks_image_size(kind: str, size: int, pool: str, fits: bool) -> None:
    """A fixed pool says which sizes fit, when the network is built and when it is run with another size."""
    made = partial(network, genotype(SKIPS, concat=(2,)), kind, size=size, auxiliary=True, auxiliary_pool=pool)
    if fits:
        net = made()
        assert net(images(size, 2)).auxiliary.shape == (2, 5)
        assert net.eval()(images(size, 2)).auxiliary is None
        return
    says = f"does not fit images of {size}x{size}: take {'32 or 36 or 40' if kind == 'cifar' else '224 or 256'} pixels"
    with pytest.raises(ValueError, match=says) as caught:
        made()
    assert "\n" not in str(caught.value)
    net = network(genotype(SKIPS, concat=(2,)), kind, size=32 if kind == "cifar" else 224, auxiliary=True)
    with pytest.raises(ValueError, match=says):
        net(images(size, 2))
    assert net.eval()(images(size, 2)).logits.shape == (2, 5)  # evaluation at another size


def test_auxiliary_head_does_not_modify_its_input() -> None:
    """With three cells it reads the last one, which DARTS' in-place ReLU overwrites."""
    with_head, without = (network(genotype(MIXED), size=32, auxiliary=a) for a in (True, False))
    without.load_state_dict({name: t for name, t in with_head.state_dict().items() if "auxiliary" not in name})
    assert torch.equal(with_head(images(32)).logits, without(images(32)).logits)
    s0 = with_head.stem(images(32)).clone()
    assert (s0 < 0).any()


def test_imagenet_head_pools_7_pixels_at_224() -> None:
    net = network(genotype(SKIPS, concat=(2,)), "imagenet", size=224).double()
    x = torch.randn(2, 16, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(net.global_pooling(x), nn.AvgPool2d(7)(x), rtol=1e-14, atol=1e-14)
    for size in (32, 96, 160):
        assert net(images(size).double()).logits.shape == (3, 5)


def test_gradients_of_both_heads_flow_into_their_cells() -> None:
    net = network(genotype(MIXED), layers=5, size=32, auxiliary=True)
    net(images(32)).auxiliary.sum().backward()
    with_gradient = {
        name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None and name.startswith("cells")
    }
    assert with_gradient == {"0", "1", "2", "3"} and net.classifier.weight.grad is None


def of_rank(cells: Genotype, sync: Rank | None) -> dict[str, Tensor]:
    """Logits, statistics and gradients of this rank's half of the images."""
    net = build(cells, NetworkShape("cifar", 4, 3, 5, True, image_size=32)).double()
    net.load_state_dict(STATE)
    net.synchronise(sync)
    x = images(32, 8).double()
    logits, auxiliary = net(x if sync is None else x.chunk(2)[sync.rank])
    (logits.square().sum() + auxiliary.square().sum()).backward()
    found = {"logits": logits.detach()} | {name: b for name, b in net.named_buffers() if "running" in name}
    return found | {f"d {name}": p.grad for name, p in net.named_parameters()}


STATE: dict[str, Tensor] = {}


def test_synchronised_norms_match_single_process() -> None:
    cells = genotype(MIXED)
    STATE.update(network(cells, size=32, auxiliary=True).double().state_dict())
    first, second = on_ranks(partial(of_rank, cells))
    one = of_rank(cells, None)
    for name, value in one.items():
        pair = first[name], second[name]
        joined = torch.cat(pair) if name == "logits" else sum(pair) if name.startswith("d ") else pair[0]
        torch.testing.assert_close(joined, value, rtol=1e-10, atol=1e-10, msg=name)


GOOD = {"kind": "cifar", "init_channels": 4, "layers": 3, "num_classes": 5, "auxiliary": False, "image_size": 32}


@pytest.mark.parametrize(
    ("cells", "changes", "says"),
    [
        (genotype(MIXED), {"kind": "svhn"}, "network 'svhn': give cifar, imagenet, nasbench201"),
        (genotype(MIXED), {"kind": "nasbench201"}, "network nasbench201: a genotype is of DARTS' networks, cifar or imagenet"),
        (Architecture.from_number(0), {}, "network cifar: a cell of NAS-Bench-201 is of its own network, nasbench201"),
        (genotype(MIXED), {"layers": 2}, "layers = 2: the cifar network needs at least 3"),
        (genotype(MIXED), {"num_classes": 0}, "num_classes = 0: the cifar network needs at least 1"),
        (genotype(MIXED), {"init_channels": 0}, "init_channels = 0"),
        (genotype(MIXED), {"image_size": 30}, "images of 30x30 pixels: the cifar network needs sides that are multiples of 4"),
        (genotype(MIXED), {"kind": "imagenet", "image_size": 100}, "the imagenet network needs sides that are multiples of 32"),
        (
            genotype(MIXED),
            {"kind": "imagenet", "init_channels": 5},
            "init_channels = 5: the imagenet stem needs an even number",
        ),
        (genotype(MIXED), {"auxiliary_pool": "mean"}, "auxiliary_pool = 'mean': give fixed or adaptive"),
        (genotype(MIXED, concat=(1, 2)), {}, "reduce cell: concatenates its input 1, which is twice as large"),
        (
            genotype([("sep_conv_9x9", 0), ("none", 1)], concat=(2,)),
            {},
            "unknown operation 'sep_conv_9x9'; known are none, max",
        ),
    ],
)
def test_invalid_networks_are_rejected_with_one_line(cells: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        build(cells, NetworkShape(**GOOD | changes))
    assert "\n" not in str(caught.value)


def test_other_image_sizes_are_rejected_and_outputs_named() -> None:
    net: DiscreteNetwork = network(genotype(MIXED))
    with pytest.raises(ValueError, match="images of 8x10 pixels: the cifar network needs sides that are multiples of 4"):
        net(torch.zeros(1, 3, 8, 10))
    out = net(torch.zeros(2, 3, 8, 12))
    assert isinstance(out, Outputs) and out._fields == ("logits", "auxiliary") and net.multiple == 4
