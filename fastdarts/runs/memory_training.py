"""Peak memory of a retraining's steps, for its plan."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdarts import steps
from fastdarts.batch import Batch
from fastdarts.networks import DiscreteNetwork
from fastdarts.optim.updates import Kept
from fastdarts.runs.build_training import update_of
from fastdarts.runs.resolved import ResolvedTraining
from fastdarts.steps.memory_counter import Counted
from fastdarts.training.update import WeightUpdate


def training_bytes(
    resolved: ResolvedTraining, network: DiscreteNetwork, batch_size: int, prefetched: int = 0, ranks: int = 1
) -> int:
    """Return the peak bytes of training steps of `network`, on the meta device; steps.step_bytes says what is counted.

    batch_size  images of a rank
    prefetched  batches waiting on the device
    ranks       gradients are averaged over several, in one flat tensor
    """
    s = resolved.settings
    reduce = None if ranks == 1 else lambda flat: None

    def make(network: DiscreteNetwork, counted: Counted) -> list[Callable[..., object]]:
        update = update_of(resolved, network, reduce)
        loss = update.loss

        def counted_loss(step: Tensor, batch: Batch) -> Tensor:
            counted.pass_begins()
            found = loss(step, batch)
            counted.pass_ends(found)
            return found

        update.loss = counted_loss  # ty: ignore[invalid-assignment]
        update._update = lambda bad, before: _without_allocation(update, bad, before)
        steps.allocate_state(update.optimizer)
        return [update]

    batch = steps.meta_batch(batch_size, s.image_size)
    return steps.step_bytes([network], make, batch, s.device, fused=False, amp=s.amp, prefetched=prefetched)


def _without_allocation(update: WeightUpdate, bad: Tensor, before: Kept) -> None:
    """Take the place of an update by a fused optimizer, which allocates nothing; RMSprop's has three more copies."""
    copies = [] if isinstance(update.optimizer, torch.optim.SGD) else [torch.empty_like(w) for w in update.weights * 3]
    update.optimizer.zero_grad()
    del copies
