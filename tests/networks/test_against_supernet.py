"""A discrete network against the supernet with one-hot weights and the same parameters, float64.

Of the supernet, whose BatchNorm has no affine parameters, and of the discrete network, whose have weight 1 and bias 0.
"""

import random

import pytest
import torch
from torch import Tensor

from fastdarts.networks import NetworkShape, build
from fastdarts.spaces import KINDS, NASBENCH201, S0, Architecture, Kind
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet import CellWeights, NASBench201Supernet, Supernet
from tests.support.backends import BACKENDS

pytestmark = pytest.mark.usefixtures("one_thread")
POOLS = ("max_pool_3x3", "avg_pool_3x3")
EPS = 1e-5


def random_genotype(seed: int, pools: bool) -> Genotype:
    """Two different inputs a node; `none` as well."""
    rng, offered = random.Random(seed), [op for op in S0.normal[0] if pools or op not in POOLS]
    cells = {
        kind: [(rng.choice(offered), state) for node in range(4) for state in sorted(rng.sample(range(2 + node), 2))]
        for kind in KINDS
    }
    return Genotype.from_fields(cells | {f"{kind}_concat": range(2, 6) for kind in KINDS})


def one_hot(genotype: Genotype) -> dict[Kind, CellWeights]:
    weights = {}
    for kind in KINDS:
        ops = torch.zeros(14, 8, dtype=torch.float64)
        for op, node, state in genotype.genes(kind):
            ops[S0.edges_of_node(node - 2)[state], S0.normal[0].index(op)] = 1
        weights[kind] = CellWeights(ops)
    return weights


def copied(genotype: Genotype, supernet: Supernet, names: list[str]) -> dict[str, Tensor]:
    """The discrete network's parameters and statistics, from the supernet's edges; ones and zeros for the affine ones."""
    state, found = supernet.state_dict(), {}
    for name in names:
        parts, source = name.split("."), name
        if parts[0] == "cells" and parts[2] == "_ops":
            kind: Kind = "reduce" if int(parts[1]) in (1, 2) else "normal"
            op, node, place = genotype.genes(kind)[int(parts[3])]
            edge = S0.edges_of_node(node - 2)[place]
            source = ".".join([*parts[:3], str(edge), "_ops", str(S0.normal[0].index(op)), *parts[4:]])
        if source in state:
            found[name] = state[source]
        else:
            assert parts[0] == "cells" and parts[-1] in ("weight", "bias"), name  # affine
            like = state[source.rpartition(".")[0] + ".running_mean"]
            found[name] = torch.ones_like(like) if parts[-1] == "weight" else torch.zeros_like(like)
    return found


def randomise(supernet: torch.nn.Module, pools_neutral: bool) -> None:
    """Generic parameters and statistics; a pool's BatchNorm leaves its input as it is in eval mode, if asked."""
    g = torch.Generator().manual_seed(5)
    state = supernet.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(generator=g)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=g)
        if pools_neutral and "._ops." in name and name.split(".")[5:6] in (["1"], ["2"]):  # candidates 1 and 2: the pools
            value.fill_({"running_mean": 0.0, "running_var": 1 - EPS}.get(name.rpartition(".")[2], 0.0))
    supernet.load_state_dict(state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("training", "pools"), [(True, False), (False, True)], ids=["training", "evaluation"])
@pytest.mark.parametrize("seed", range(4))
def test_genotype_network_matches_one_hot_supernet(backend: str, training: bool, pools: bool, seed: int) -> None:
    """Logits, gradients of the shared parameters and of the images; in training without pools, whose norms are not neutral."""
    torch.manual_seed(seed)
    genotype = random_genotype(seed, pools)
    supernet = Supernet(S0, C=4, layers=3, backend=backend).double()
    supernet.attach_classifier(5)
    randomise(supernet, pools)
    network = build(genotype, NetworkShape("cifar", 4, 3, 5, False, image_size=16)).double()
    network.load_state_dict(copied(genotype, supernet, list(network.state_dict())))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    images = x.clone().requires_grad_(), x.clone().requires_grad_()
    supernet.train(training)
    network.train(training)
    logits = network(images[0]).logits
    wanted = supernet.classifier(supernet(images[1], one_hot(genotype))[-1].mean((2, 3)))
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)
    for out in (logits, wanted):
        out.square().sum().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network.classifier.weight.grad, supernet.classifier.weight.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network.stem[0].weight.grad, supernet.stem[0].weight.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [9481, 15624, 4242])
def test_nas_bench_201_network_matches_one_hot_supernet(backend: str, training: bool, number: int) -> None:
    torch.manual_seed(number)
    cell = Architecture.from_number(number)
    supernet = NASBench201Supernet(NASBENCH201, C=4, cells_per_stage=1, batch_norm="running", backend=backend).double()
    supernet.attach_classifier(5)
    randomise(supernet, False)
    network = build(cell, NetworkShape("nasbench201", 4, 1, 5, False, image_size=16)).double()
    state, found = supernet.state_dict(), {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if len(parts) > 3 and parts[2] == "layers":
            source, node = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))[int(parts[3])]
            place = NASBENCH201.normal[0].index(cell.ops[int(parts[3])])
            name_there = ".".join([*parts[:2], "edges", f"{node}<-{source}", str(place), *parts[4:]])
            affine = name_there not in state
            found[name] = (torch.ones if parts[-1] == "weight" else torch.zeros)(value.shape) if affine else state[name_there]
        else:
            found[name] = state[name]
    network.load_state_dict(found)
    ops = torch.zeros(6, 5, dtype=torch.float64)
    for edge, op in enumerate(cell.ops):
        ops[edge, NASBENCH201.normal[0].index(op)] = 1
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    supernet.train(training)
    network.train(training)
    wanted = supernet.classifier(supernet(x, {"normal": CellWeights(ops)})[-1].mean((2, 3)))
    torch.testing.assert_close(network(x).logits, wanted, rtol=1e-12, atol=1e-12)
