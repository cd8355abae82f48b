"""SDARTS (Chen and Hsieh, ICML 2020): train the network at perturbed mixing weights, which smooths its loss in alpha.

Notation: E edges of a cell, K candidates of its longest list, epsilon the radius of the perturbation.
"""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.ops.philox import Purpose, Stream, random_words
from fastdarts.optim.pieces import means
from fastdarts.protocols import Pieces
from fastdarts.search.bilevel import Bilevel, frozen
from fastdarts.search.relaxation import Options, SoftmaxRelaxation
from fastdarts.settings import SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights

FIRST_EPSILON = 0.03  # of epoch 0; settings.smoothing_epsilon would be that of epoch `epochs`
ATTACK_STEPS = 7
Rows = dict[Kind, Tensor]  # (E, K) by kind of cell


def project(rows: Tensor, padding: Tensor) -> Tensor:
    """Return rows on the simplex: clamped to [0, 1], divided by their sums.

    rows     (E, K): any numbers
    padding  bool (E, K): columns that stay 0
    A row without a positive number becomes 1 at its largest.
    """
    clamped = rows.clamp(0, 1).masked_fill(padding, 0)
    total = clamped.sum(-1, keepdim=True)
    largest = rows.masked_fill(padding, -torch.inf).argmax(-1, keepdim=True)
    alone = (torch.arange(rows.shape[-1], device=rows.device) == largest).to(rows)
    return torch.where(total > 0, clamped / total, alone)


class RandomSmoothing(SoftmaxRelaxation):
    """SDARTS-RS: the weights' update adds uniform noise from [-epsilon, epsilon] to softmax(alpha), then projects its rows.

    Fresh noise for each number and step: a function of seed and step, alike on all ranks. alpha's update, the virtual step of
    the second order and evaluation see softmax(alpha). (Both papers say that the noise is Gaussian; the code's is uniform.)
    """

    def __init__(self, space: Space, *, epsilon: float = 0.3, **options: Unpack[Options]) -> None:
        super().__init__(space, **options)
        self.seed, self.last_epsilon = options.get("seed", 0), epsilon
        self.epsilon = next(iter(self.alpha.values())).new_full((), FIRST_EPSILON)

    @classmethod
    def own_options(cls, space: Space, settings: SearchSettings) -> dict[str, Any]:
        return {"epsilon": settings.smoothing_epsilon}

    def epoch_begins(self, epoch: int, epochs: int) -> None:
        self.epsilon.fill_(FIRST_EPSILON + (self.last_epsilon - FIRST_EPSILON) * epoch / epochs)

    def training_weights(self, bilevel: Bilevel, step: Tensor, train: Batch) -> Pieces[dict[Kind, CellWeights]]:
        yield from ()  # nothing to average
        with torch.no_grad():
            return self._with(self._noisy(self._plain(), step))

    def _plain(self) -> Rows:
        return {kind: self._ops(kind).detach() for kind in self.alpha}

    def _noisy(self, plain: Rows, step: Tensor) -> Rows:
        noise = self._noise(step)
        return {kind: project(rows + self.epsilon * noise[kind], self.padding[kind]) for kind, rows in plain.items()}

    def _noise(self, step: Tensor) -> Rows:
        """Return uniform numbers from [-1, 1) for this step."""
        found: Rows = {}
        for number, (kind, alpha) in enumerate(self.alpha.items()):
            E, K = alpha.shape
            edges = torch.arange(number * E, (number + 1) * E, device=alpha.device)
            words = random_words(self.seed % 2**64, Stream.TRAIN, step, edges, Purpose.SMOOTHING, K)
            found[kind] = words.to(alpha.dtype) / 2**31 - 1
        return found

    @torch.no_grad()
    def _with(self, rows: Rows) -> dict[Kind, CellWeights]:
        return {kind: CellWeights(ops, self._edges(kind)) for kind, ops in rows.items()}


class AdversarialSmoothing(RandomSmoothing):
    """SDARTS-ADV: projected gradient ascent of the training loss within epsilon of softmax(alpha), from a random start.

    Seven steps of 2 epsilon / 7 along the gradient's sign, in evaluation mode at held weights of the network. Each step's
    distance to softmax(alpha) is clamped to epsilon before its rows are projected, which may leave that ball a little, as in
    the released code. If the loss did not grow, softmax(alpha) is used. With ranks, gradients and losses are means over all.
    """

    def training_weights(self, bilevel: Bilevel, step: Tensor, train: Batch) -> Pieces[dict[Kind, CellWeights]]:
        plain = self._plain()
        before, _ = yield from probe(bilevel, step, train, self._with(plain), gradient=False)
        rows = self._noisy(plain, step)
        for _ in range(ATTACK_STEPS):
            _, grads = yield from probe(bilevel, step, train, self._with(rows))
            rows = self._ascended(plain, rows, grads)
        after, _ = yield from probe(bilevel, step, train, self._with(rows), gradient=False)
        return self._with({kind: torch.where(before > after, plain[kind], rows[kind]) for kind in rows})

    def _ascended(self, plain: Rows, rows: Rows, grads: Rows) -> Rows:
        """Return the rows after one step of the attack."""
        size, found = 2 * self.epsilon / ATTACK_STEPS, {}
        for kind, start in plain.items():
            distance = rows[kind] + size * grads[kind].sign() - start
            found[kind] = project(start + distance.clamp(-self.epsilon, self.epsilon), self.padding[kind])
        return found


def probe(
    bilevel: Bilevel, step: Tensor, train: Batch, weights: Mapping[Kind, CellWeights], gradient: bool = True
) -> Pieces[tuple[Tensor, Rows]]:
    """Return the training loss at mixing weights and, with `gradient`, its gradient in their ops: means over the ranks.

    In evaluation mode, at the network's current weights, which get no gradient; buffers stay unchanged.
    """
    modules, precision = (bilevel.supernet, bilevel.objective), bilevel.precision
    held = {kind: w._replace(ops=w.ops.detach().requires_grad_(gradient)) for kind, w in weights.items()}
    for module in modules:
        module.eval()
    try:
        with frozen(bilevel.weights), torch.set_grad_enabled(gradient):
            with precision.autocast():
                loss = bilevel.objective(bilevel.supernet, bilevel.relaxation.fixed(held), train, step, Stream.TRAIN)
            ops = [w.ops for w in held.values()]
            grads = precision.unscaled(list(torch.autograd.grad(precision.scaled(loss), ops))) if gradient else []
    finally:
        for module in modules:
            module.train()
    loss, *grads = yield from means([loss.detach(), *grads], bilevel.reduce)
    return loss, dict(zip(held, grads, strict=False))
