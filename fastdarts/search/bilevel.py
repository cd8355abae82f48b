"""One step of bilevel optimisation: update alpha on a validation batch and the weights on a training batch.

min_alpha L_val(w*(alpha), alpha)  subject to  w*(alpha) = argmin_w L_train(w, alpha)      (DARTS, Eq. 3 and 4)
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives import Objective
from fastdarts.ops.philox import Stream
from fastdarts.optim.pieces import average, means, run_pieces, take_update
from fastdarts.optim.precision import Precision
from fastdarts.optim.updates import Buffers, Kept, guarded_step, non_finite
from fastdarts.protocols import Pieces, Reduce, Update
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.spaces import Kind
from fastdarts.supernet import CellWeights, Network, shared_noise

FINITE_DIFFERENCE = 1e-2  # R = 1e-2 / |v| in DARTS' Hessian-vector product
UNUSED: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}

Gradient = tuple[Tensor, list[Tensor]]  # a detached scalar loss, and its gradient w.r.t. each parameter of alpha


class Bilevel:
    """Update alpha and the weights as DARTS does: protocols.Updates.

    weight_optimizer  torch.optim.SGD over `weights` (the supernet's and the objective's parameters), one group
    arch_optimizer    any optimizer over `relaxation.parameters()`
    unrolled          second order: alpha's gradient at the weights after one virtual SGD step, with the
                      Hessian-vector product by finite differences (DARTS, Eq. 6 to 8)
    grad_clip, arch_grad_clip   maximum gradient norm of the weights and of alpha; 0 = no clipping
    weights_first     update the weights before alpha (DARTS updates alpha first)
    precision         of the forward passes; default: the weights' dtype
    reduce            averages a tensor over the ranks of a distributed search, each with an equal share of every batch. One
                      flat tensor carries the losses, gradients and running statistics of an update, so all ranks step alike
                      and skip alike. The second order first averages its virtual gradient and v. All ranks start with equal
                      weights, alpha and buffers, and end every step with them

    Every train-mode forward updates BatchNorm's running statistics, except the one at the virtual weights, which DARTS
    computes on a copy of the network.

    An update with a non-finite loss or gradient is skipped on the device: parameters, optimizer state and the modules'
    buffers keep their values, and `skipped`, int64 (2,), counts it: updates of the weights, updates of alpha.
    Nothing here synchronises with the host, so a step can be captured (steps.cuda_graph).
    """

    def __init__(
        self,
        supernet: Network,
        objective: Objective,
        relaxation: SoftmaxRelaxation,
        weight_optimizer: torch.optim.Optimizer,
        arch_optimizer: torch.optim.Optimizer,
        *,
        unrolled: bool = False,
        grad_clip: float = 5.0,
        arch_grad_clip: float = 0.0,
        weights_first: bool = False,
        precision: Precision | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.supernet, self.objective, self.relaxation = supernet, objective, relaxation
        self.weight_optimizer, self.arch_optimizer = weight_optimizer, arch_optimizer
        self.unrolled, self.weights_first = unrolled, weights_first
        self.grad_clip, self.arch_grad_clip = grad_clip, arch_grad_clip
        (group,) = weight_optimizer.param_groups
        self.weights: list[Tensor] = group["params"]
        self.device = self.weights[0].device
        self.precision = precision or Precision(device=self.device)
        self.reduce: Reduce | None = reduce
        self.stage: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.skipped = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._buffers = Buffers(supernet, objective)

    def __call__(self, step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, Tensor | None]:
        """Run one step and return the training and the validation loss, detached scalars; `val` None skips alpha's update.

        step: int64 tensor of one element on the batches' device; keys the randomness of this step.
        """
        losses = {update: take_update(self, update, step, train, val) for update in self.order(val is not None)}
        return losses["weights"], losses.get("alpha")

    @property
    def optimizers(self) -> dict[Update, torch.optim.Optimizer]:
        return {"weights": self.weight_optimizer, "alpha": self.arch_optimizer}

    def order(self, with_val: bool) -> tuple[Update, ...]:
        if not with_val:
            return ("weights",)
        return ("weights", "alpha") if self.weights_first else ("alpha", "weights")

    def captured_before(self, update: Update) -> tuple[Update, ...]:
        # second order reads the momentum: the graph includes it only if the weights' warm-up created the buffers before
        return ("weights",) if self.unrolled and update == "alpha" else ()

    def tensors(self) -> list[Tensor]:
        modules = [t for m in (self.supernet, self.objective) for t in (*m.parameters(), *m.buffers())]
        scale = self.precision.scale
        scales = [] if scale is None else [scale.value, scale.good]
        return [*self.weights, *modules, *self.relaxation.parameters(), self.skipped, *scales]

    def obstacle(self) -> str | None:
        if self.supernet.sync is None:
            return None
        return "BatchNorm's sums are synchronised between the ranks within the forward pass"

    def weight_step(self, step: Tensor, train: Batch) -> Tensor:
        """Update the weights along the training loss' gradient. Weights that the loss does not reach stay unchanged."""
        return take_update(self, "weights", step, train, None)

    def arch_step(self, step: Tensor, train: Batch, val: Batch) -> Tensor:
        """Update alpha (and beta) along the validation loss' gradient."""
        return take_update(self, "alpha", step, train, val)

    def pieces(self, update: Update, step: Tensor, train: Batch, val: Batch | None) -> Pieces[Tensor]:
        """Run weight_step or arch_step in pieces. Raises ValueError for alpha without a second batch."""
        if update == "weights":
            return self.weight_pieces(step, train)
        if val is None:
            raise ValueError("alpha is updated on a validation batch: give one")
        return self.arch_pieces(step, train, val)

    def weight_pieces(self, step: Tensor, train: Batch) -> Pieces[Tensor]:
        """Run weight_step in pieces: yield each tensor to average; one piece without `reduce`."""
        before = self._buffers.kept()
        weights = yield from self.relaxation.training_weights(self, step, train)
        loss = self._train_loss(step, train, weights)
        self.weight_optimizer.zero_grad()
        # not autograd.grad: it returns one tensor for all terms of a sum (the decoder's biases), but clipping is in place;
        # and it keeps the images' memory format, but torch's fused SGD expects a gradient in its weight's format
        self.precision.scaled(loss).backward(inputs=self.weights)
        loss, grads = loss.detach(), [w.grad for w in self.weights if w.grad is not None]
        yield from average([loss, *grads, *before.floating], self.reduce)
        bad = non_finite(loss, grads, self.precision.inverse())
        with self.stage("optimizer"):
            self._update(bad, self.weight_optimizer, self.weights, self.grad_clip, before, self.skipped[0])
        return loss

    def arch_pieces(self, step: Tensor, train: Batch, val: Batch) -> Pieces[Tensor]:
        """Run arch_step in pieces, as weight_pieces."""
        before = self._buffers.kept()
        if self.unrolled:
            loss, grads = yield from self._unrolled(step, train, val)
        else:
            loss, grads = self.first_order_gradient(step, train, val)
        parameters = self.relaxation.parameters()
        grads = [g.contiguous() for g in grads]
        for a, g in zip(parameters, grads, strict=True):
            a.grad = g
        yield from average([loss, *grads, *before.floating], self.reduce)
        bad = non_finite(loss, grads, self.precision.one)
        with self.stage("optimizer"):
            self._update(bad, self.arch_optimizer, parameters, self.arch_grad_clip, before, self.skipped[1])
            self.relaxation.alpha_stepped()
        return loss

    def _update(
        self,
        bad: Tensor,
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
        clip: float,
        before: Kept,
        skipped: Tensor,
    ) -> None:
        """Clip the gradients and step along them; if `bad` is 1, restore the state before and count the skipped update."""
        guarded_step(bad, optimizer, parameters, clip, before, skipped, self.precision)

    def first_order_gradient(self, step: Tensor, train: Batch, val: Batch) -> Gradient:
        """Return L_val(w, alpha) and its gradient w.r.t. alpha on this rank's share; no weight gradients are computed."""
        with frozen(self.weights):
            loss = self._val_loss(step, val)
            return loss.detach(), self._gradients(loss, self.relaxation.parameters())

    def unrolled_gradient(self, step: Tensor, train: Batch, val: Batch) -> Gradient:
        """Return L_val(w', alpha) and d/dalpha of it, w' = w - eta (momentum * buffer + dL_train/dw + decay * w).

        d/dalpha L_val(w', alpha) - eta * (dL_train/dalpha at w + R v - the same at w - R v) / 2R, v = dL_val/dw'.
        The weights are restored exactly. w' and v are averaged over the ranks; loss and gradient are those of this rank's
        share.
        """
        return run_pieces(self._unrolled(step, train, val), self.reduce)

    def _unrolled(self, step: Tensor, train: Batch, val: Batch) -> Pieces[Gradient]:
        (group,) = self.weight_optimizer.param_groups
        eta, alpha = group["lr"], self.relaxation.parameters()
        virtual, overflow = yield from self._virtual_gradient(self._train_loss(step, train), group)
        saved = [w.detach().clone() for w in self.weights]
        try:
            self._place(saved, virtual, -eta)
            with frozen_buffers(self.supernet, self.objective):
                loss = self._val_loss(step, val)
                grads = self._gradients(loss, [*alpha, *self.weights], **UNUSED)
            d_alpha = grads[: len(alpha)]
            v = yield from means(grads[len(alpha) :], self.reduce)
            R = FINITE_DIFFERENCE / torch.stack(torch._foreach_norm(v)).norm()
            weights = self.relaxation.weights(Stream.TRAIN)  # once: a relaxation may sample
            mixing = [t for of_kind in weights.values() for t in of_kind if t is not None]
            sides = []
            # always in full precision, which resolves so small a difference, and with the same noise on either side
            with frozen(self.weights), shared_noise(self.supernet):
                for sign in (1, -1):
                    self._place(saved, v, sign * R)
                    side = self.objective(self.supernet, weights, train, step, Stream.TRAIN)
                    sides.append(torch.autograd.grad(side, mixing))
        finally:
            self._place(saved)
        differences = torch.autograd.grad(mixing, alpha, [plus - minus for plus, minus in zip(*sides, strict=True)])
        grads = [d - eta * difference / (2 * R) for d, difference in zip(d_alpha, differences, strict=True)]
        return loss.detach(), grads if overflow is None else [g.masked_fill(overflow, torch.nan) for g in grads]

    def _virtual_gradient(self, loss: Tensor, group: dict) -> Pieces[tuple[list[Tensor], Tensor | None]]:
        """Return momentum * buffer + dL/dw + decay * w, SGD's update before the learning rate; without Nesterov, as in DARTS.

        With a loss scale, also return whether dL/dw overflowed (a bool of one element). An overflowed gradient is set to 0, so
        that the loss at the virtual weights stays defined.
        """
        grads, overflow = self._gradients(loss, self.weights, **UNUSED), None
        loss, *grads = yield from means([loss.detach(), *grads], self.reduce)
        if self.precision.scale is not None:
            overflow = non_finite(loss, grads, self.precision.one).bool()
            grads = [g.masked_fill(overflow, 0.0) for g in grads]
        virtual = []
        for w, g in zip(self.weights, grads, strict=True):
            buffer = self.weight_optimizer.state[w].get("momentum_buffer")
            momentum = 0.0 if buffer is None else group["momentum"] * buffer
            virtual.append(g + group["weight_decay"] * w.detach() + momentum)
        return virtual, overflow

    @torch.no_grad()
    def _place(self, origin: list[Tensor], direction: list[Tensor] | None = None, scale: float | Tensor = 0.0) -> None:
        """Set weights = origin + scale * direction, in place; without a direction, restore origin exactly."""
        placed = origin if direction is None else [o + scale * d for o, d in zip(origin, direction, strict=True)]
        torch._foreach_copy_(self.weights, placed)

    def _gradients(self, loss: Tensor, inputs: list[Tensor], **unused: Any) -> list[Tensor]:
        """Return dL/d of each input; `unused` gives zeros for inputs that the loss does not reach."""
        return self.precision.unscaled(list(torch.autograd.grad(self.precision.scaled(loss), inputs, **unused)))

    def _train_loss(self, step: Tensor, train: Batch, weights: dict[Kind, CellWeights] | None = None) -> Tensor:
        """Return the training loss with alpha held constant; without `weights`, at the relaxation's."""
        if weights is None:
            with torch.no_grad():
                weights = self.relaxation.weights(Stream.TRAIN)
        with self.precision.autocast():
            return self.objective(self.supernet, weights, train, step, Stream.TRAIN)

    def _val_loss(self, step: Tensor, val: Batch) -> Tensor:
        """Return the validation loss plus the relaxation's penalty."""
        weights, penalty = self.relaxation.weights(Stream.VAL), self.relaxation.penalty()
        with self.precision.autocast():
            loss = self.objective(self.supernet, weights, val, step, Stream.VAL)
        return loss if penalty is None else loss + penalty


@contextmanager
def frozen(weights: list[Tensor]) -> Generator[None]:
    """Freeze `weights` inside the context: a fused op decides in its forward whether its backward computes their gradients."""
    moving = [w for w in weights if w.requires_grad]
    try:
        for w in moving:
            w.requires_grad_(False)
        yield
    finally:
        for w in moving:
            w.requires_grad_(True)


@contextmanager
def frozen_buffers(*modules: nn.Module) -> Generator[None]:
    """Restore the modules' buffers (BatchNorm's statistics) on exit; forwards inside the context may update them."""
    buffers = [b for module in modules for b in module.buffers()]
    saved = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for b, s in zip(buffers, saved, strict=True):
                b.copy_(s)
