"""Published checkpoints: what a file holds, and the network with its weights. Nothing of a file is executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.networks.base import STANDARD, DiscreteNetwork, NetworkShape
from fastdarts.networks.build import build
from fastdarts.networks.cell import SparseCell
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet.network import STEM_MULTIPLIER

WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema", "network")  # keys under which codebases save the weights
AVERAGES = ("state_dict_ema", "ema")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, pickle.UnpicklingError)
_NORM768 = "auxiliary_head.features.6.weight"


class CheckpointError(ValueError):
    """A file that holds no weights of a network, or those of another network; the message is one line."""


class Published(NamedTuple):
    """The weights of a file, under the names of this package's networks, and the shape of their network."""

    state_dict: dict[str, Tensor]
    shape: NetworkShape


def load_published(
    source: str | Path | Mapping[str, Any], architecture: Genotype | Architecture, *, ema: bool = False
) -> DiscreteNetwork:
    """Return the network of an architecture with the weights of a file, on the CPU; its `shape` is the file's.

    source  a file of torch.save, of any version, or what it holds: a state_dict, or a dict with one (see WRAPPERS)
    Raises CheckpointError, which names the first gene whose weights contradict the architecture.
    """
    where = str(source) if isinstance(source, str | Path) else "checkpoint"
    state, shape = read_published(source, ema=ema)
    try:
        with torch.device("meta"):
            network = build(architecture, shape)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if wrong := contradiction(network, state):
        raise CheckpointError(f"{where}: {wrong}")
    network = network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network


def read_published(source: str | Path | Mapping[str, Any], *, ema: bool = False) -> Published:
    """Return the weights of a file and the shape of their network. Raises CheckpointError; as load_published.

    ema  those of the moving average, which a file of timm or of this package may hold too
    """
    where = str(source) if isinstance(source, str | Path) else "checkpoint"
    held = _opened(Path(source).expanduser()) if isinstance(source, str | Path) else source
    state = _weights(_averaged(held, where) if ema else held, where)
    try:
        return Published(state, _shape(state))
    except (KeyError, IndexError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{where}: not the weights of a network of DARTS or NAS-Bench-201: {what}") from error


def contradiction(network: DiscreteNetwork, state: Mapping[str, Tensor]) -> str | None:
    """Return None if the weights fit the network, else which gene or part they contradict first."""
    expected = network.state_dict()
    wrong = [name for name in [*expected, *state] if _size(expected, name) != _size(state, name)]
    if not wrong:
        return None
    first = min(wrong, key=_order)
    place = _place(network, first)
    more = len(set(wrong)) - 1
    others = f", and {more} others" if more else ""
    sizes = f"expected {_size(expected, first)}, found {_size(state, first)}"
    return f"{place}: {first}: {sizes}{others}: the weights are of another genotype or network"


def _opened(path: Path) -> Any:
    """Load a file, tensors and plain containers only. Raises CheckpointError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        text = " ".join(str(error).split())
        if "GLOBAL" in text:
            raise CheckpointError(
                f"{path}: holds Python objects, such as a whole pickled model, which run code when loaded: load it in its own "
                "codebase and save model.state_dict()"
            ) from error
        why = getattr(error, "strerror", None) or f"not a file of torch.save ({text[:120] or type(error).__name__})"
        raise CheckpointError(f"{path}: {why}") from error


def _averaged(held: Any, where: str) -> Any:
    """Return the moving average in what a file holds. Raises CheckpointError."""
    found = [held[name] for name in AVERAGES if isinstance(held, Mapping) and isinstance(held.get(name), Mapping)]
    if not found:
        raise CheckpointError(f"{where}: holds no moving average, under {' or '.join(AVERAGES)}")
    return found[0]


def _weights(held: Any, where: str) -> dict[str, Tensor]:
    """Return the weights in what a file holds, without wrappers and prefixes, with every BatchNorm's count of batches."""
    while isinstance(held, Mapping) and (inner := [held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)]):
        held = inner[0]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        kind = f"a dict of {', '.join(map(str, list(held)[:6]))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise CheckpointError(f"{where}: holds {kind}, no state_dict, bare or under {', '.join(WRAPPERS)}")
    state = {_plain(str(name)): value for name, value in held.items()}
    for name in [name for name in state if name.endswith(".running_mean")]:
        state.setdefault(f"{name.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return state


def _plain(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _shape(state: Mapping[str, Tensor]) -> NetworkShape:
    """Return the shape that weights have. Raises KeyError for a missing one, ValueError."""
    classes, cells = state["classifier.weight"].shape[0], 1 + max(map(_cell_number, state))
    auxiliary = any(name.startswith("auxiliary_head.") for name in state)
    norm = _NORM768 in state if auxiliary else None
    if "stem0.0.weight" in state:
        kind, C = "imagenet", state["stem0.3.weight"].shape[0]
    elif "lastact.0.weight" in state:
        kind, C, cells = "nasbench201", state["stem.0.weight"].shape[0], (cells - 2) // 3
    else:
        kind, C = "cifar", state["stem.0.weight"].shape[0] // STEM_MULTIPLIER
    return NetworkShape(kind, C, cells, classes, auxiliary, norm, image_size=STANDARD[kind].image_size)


def _cell_number(name: str) -> int:
    """Return the number of the cell of a weight, -1 outside the cells."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "cells" and len(parts) > 1 and parts[1].isdecimal() else -1


def _order(name: str) -> tuple[int, int]:
    """Return the key that sorts weights by cell and gene."""
    parts = name.split(".")
    return _cell_number(name), int(parts[3]) if len(parts) > 3 and parts[3].isdecimal() else -1


def _size(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"


def _place(network: DiscreteNetwork, name: str) -> str:
    """Return which gene or part of a network a weight belongs to, in words."""
    parts, number = name.split("."), _cell_number(name)
    if number < 0 or len(parts) < 4 or parts[2] not in ("_ops", "layers"):
        return f"cell {number}" if number >= 0 else "outside the cells"
    if isinstance(network.architecture, Architecture):
        return f"cell {number}, edge {parts[3]}{_operation(network.architecture.ops, parts[3])}"
    cells: Any = network.cells
    cell = cells[number] if number < len(cells) else None
    if isinstance(cell, SparseCell):
        return f"cell {number}, node {parts[3]} from state {parts[4]}"
    genes = [f"{op} from state {state}" for op, _, state in cell.genes] if cell is not None else []
    return f"cell {number}, gene {parts[3]}{_operation(genes, parts[3])}"


def _operation(names: Any, number: str) -> str:
    place = int(number) if number.isdecimal() else len(names)
    return f" ({names[place]})" if place < len(names) else ""
