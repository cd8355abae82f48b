"""Build a supernet's Bilevel from the settings: relaxation, optimizers, precision."""

from torch import Tensor
from torch.optim import Optimizer

from fastdarts.objectives import Objective
from fastdarts.optim.optimizers import arch_optimizer, weight_optimizer
from fastdarts.optim.precision import Precision
from fastdarts.protocols import Reduce
from fastdarts.search.bilevel import Bilevel
from fastdarts.search.fixed_rows import FixedRows
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.settings import SearchSettings
from fastdarts.supernet import Network


def bilevel_of(
    supernet: Network,
    objective: Objective,
    settings: SearchSettings,
    *,
    relaxation: type[SoftmaxRelaxation] = SoftmaxRelaxation,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> Bilevel:
    """Return the Bilevel of modules on their device and in their dtype, at its initial learning rates.

    seed    of alpha's initial values
    reduce  as of Bilevel
    """
    s = settings
    weights: list[Tensor] = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
    device, dtype = weights[0].device, weights[0].dtype
    mixing = relaxation.of(supernet.space, s, seed=seed, device=device, dtype=dtype)
    return Bilevel(
        supernet,
        objective,
        mixing,
        _sgd(weights, s),
        arch_optimizer(
            mixing.parameters(), s.arch_learning_rate, weight_decay=s.arch_weight_decay, backend=s.optimizer_backend
        ),
        unrolled=s.unrolled,
        grad_clip=s.grad_clip,
        arch_grad_clip=s.arch_grad_clip,
        weights_first=s.step_order == "weights-first",
        precision=Precision(s.amp, device),
        reduce=reduce,
    )


def tuning_of(bilevel: Bilevel, settings: SearchSettings, reduce: Reduce | None = None) -> Bilevel:
    """Return the Bilevel that tunes a searched network between decisions: with FixedRows and fresh momentum.

    alpha's optimizer and the loss scale go on. reduce: as of Bilevel
    """
    return Bilevel(
        bilevel.supernet,
        bilevel.objective,
        FixedRows(bilevel.relaxation, partial=bilevel.supernet.k > 1),
        _sgd(bilevel.weights, settings),
        bilevel.arch_optimizer,
        unrolled=bilevel.unrolled,
        grad_clip=bilevel.grad_clip,
        arch_grad_clip=bilevel.arch_grad_clip,
        weights_first=bilevel.weights_first,
        precision=bilevel.precision,
        reduce=reduce,
    )


def _sgd(weights: list[Tensor], settings: SearchSettings) -> Optimizer:
    s = settings
    return weight_optimizer(
        weights,
        s.learning_rate,
        momentum=s.momentum,
        weight_decay=s.weight_decay,
        nesterov=s.nesterov,
        backend=s.optimizer_backend,
    )
