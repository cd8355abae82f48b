"""Peak memory of a retraining's steps, for its plan."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdarts import steps
from fastdarts.batch import Batch
from fastdarts.networks import DiscreteNetwork
from fastdarts.ops.of_layers import fits
from fastdarts.optim.updates import Kept, step_if_finite
from fastdarts.runs.build_retrain import update_of
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.steps.memory_counter import Counted
from fastdarts.training.update import WeightUpdate


def retrain_bytes(
    resolved: ResolvedRetrain, network: DiscreteNetwork, batch_size: int, prefetched: int = 0, ranks: int = 1
) -> int:
    """Return the peak bytes of training steps of `network`, on the meta device; steps.step_bytes says what is counted.

    batch_size  images of a rank
    prefetched  batches waiting on the device
    ranks       gradients are averaged over several, in one flat tensor
    """
    s = resolved.settings
    reduce = None if ranks == 1 else lambda flat: None

    def make(network: DiscreteNetwork, counted: Counted) -> list[Callable[..., object]]:
        update = update_of(_Counting, resolved, network, reduce)
        update.counted = counted
        steps.allocate_state(update.optimizer)
        return [update]

    fused = fits("mixed_cell", s.backend, torch.device(s.device), torch.float32)
    batch = steps.meta_batch(batch_size, s.image_size)
    return steps.step_bytes([network], make, batch, s.device, fused=fused, amp=s.amp, prefetched=prefetched)


class _Counting(WeightUpdate):
    """WeightUpdate that reports its forwards, and whose updates allocate no more than the real ones do."""

    counted: Counted

    def loss(self, step: Tensor, batch: Batch) -> Tensor:
        self.counted.pass_begins()
        loss = super().loss(step, batch)
        self.counted.pass_ends(loss)
        return loss

    def _update(self, bad: Tensor, before: Kept) -> None:
        if not isinstance(self.optimizer, torch.optim.SGD):  # whose fused step allocates nothing
            step_if_finite(bad, self.optimizer)
        self.optimizer.zero_grad()
        if self.moving is not None:
            self.moving.update(bad)
