"""Save and restore the states of all random number generators of a process, in checkpoint format.

A search draws its random numbers from Philox, by step and image. Restoring lets other users of torch's, Python's or
NumPy's generators continue exactly, too.
"""

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators (CPU and `device`), Python's and NumPy's."""
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
    """Restore the states from rng_state; the generator of a different kind of device is unchanged."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
