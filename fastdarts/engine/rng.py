"""The states of all random number generators of a process, as what a checkpoint may hold.

A search draws its random numbers from Philox, by step and image; what else draws from torch's, Python's or NumPy's
generators goes on where it stood, too.
"""

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """Of torch's generators (of the CPU and of `device`), Python's and NumPy's."""
    version, words, gauss = random.getstate()
    numpys: Any = np.random.get_state()
    name, key, position, has_gauss, cached = numpys
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(words), gauss),
        "numpy": (name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, cached),
    }
    return state | ({"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on where rng_state was taken; on another kind of device, its generator is left as it is."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
