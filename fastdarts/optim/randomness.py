"""Isolated random numbers: seed torch's global generators temporarily and restore them on exit."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int = 0) -> Generator[None]:
    """Seed torch's global generators, of the CPU and of `device`, inside the context; restore their states on exit.

    Modules that draw from them (S4's noise, custom candidates) draw the same numbers each time, and the search afterwards is
    unaffected. Not allowed during CUDA graph capture.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
