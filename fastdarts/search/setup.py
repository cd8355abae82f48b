"""Build a supernet's Bilevel from the settings: relaxation, optimizers, precision."""

from torch import Tensor

from fastdarts.objectives import Objective
from fastdarts.optim.optimizers import arch_optimizer, weight_optimizer
from fastdarts.optim.precision import Precision
from fastdarts.protocols import Reduce
from fastdarts.search.bilevel import Bilevel
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
        weight_optimizer(
            weights,
            s.learning_rate,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            nesterov=s.nesterov,
            backend=s.optimizer_backend,
        ),
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
