"""Random numbers beside the search's own: torch's generators are used, and left as they were."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int = 0) -> Generator[None]:
    """Inside, torch's global generators, of the CPU and of `device`, begin at `seed`; at the end they are where they were.

    What draws from them (S4's noise, candidates of one's own) draws the same each time, and the search after it draws as if
    it had not been. Not while a CUDA graph is captured.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
