"""A trained network as a folder: its weights in model.safetensors, what it is in config.json, keys as timm's hub has them.

Nothing of a folder is executed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastdarts.networks.base import DiscreteNetwork, NetworkShape
from fastdarts.networks.build import build
from fastdarts.networks.checkpoint import CheckpointError, contradiction
from fastdarts.spaces.architecture import architecture_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NAME = "fastdarts_cell"  # of all architectures; the genotype tells which
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and standard deviation of the pixels


class Exported(NamedTuple):
    """A folder's network, on the CPU in eval mode, the statistics that normalise its input, and the names of its classes."""

    network: DiscreteNetwork
    statistics: Statistics
    classes: tuple[str, ...]


def write_network(
    folder: str | Path,
    network: DiscreteNetwork,
    statistics: Statistics,
    classes: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a network and how its input is normalised; replaces the files of an earlier one.

    facts  more entries of config.json, as its provenance, under the key "fastdarts"
    Raises ValueError if classes and network do not fit, OSError, and ModuleNotFoundError without safetensors.
    """
    from safetensors.torch import save_file

    shape, (mean, std) = network.shape, statistics
    if len(classes) != shape.num_classes:
        raise ValueError(f"{len(classes)} names of classes for a network of {shape.num_classes}")
    config = {
        "architecture": NAME,
        "num_classes": shape.num_classes,
        "num_features": network.num_features,
        "model_args": {"genotype": str(network.architecture), **asdict(shape)},
        "pretrained_cfg": {
            "input_size": [3, shape.image_size, shape.image_size],
            "mean": list(mean),
            "std": list(std),
            "num_classes": shape.num_classes,
            "classifier": "classifier",
        },
        "label_names": list(classes),
        "fastdarts": dict(facts or {}),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds the files of write_network."""
    return all((folder / name).is_file() for name in (WEIGHTS, CONFIG))


def read_network(folder: str | Path) -> Exported:
    """Read what write_network wrote. Raises CheckpointError, in one line, for other files and damaged ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        given, pretrained = dict(config["model_args"]), config["pretrained_cfg"]
        architecture = architecture_of(str(given.pop("genotype")))
        shape = NetworkShape(**given)
        statistics: Any = tuple(tuple(map(float, pretrained[name])) for name in ("mean", "std"))
        classes = tuple(map(str, config["label_names"]))
        with torch.device("meta"):
            network = build(architecture, shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not of an exported network ({type(error).__name__}: {error})") from error
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({error})") from error
    if wrong := contradiction(network, state):
        raise CheckpointError(f"{folder / WEIGHTS}: {wrong}")
    mean, std = statistics
    usual = len(mean) == len(std) == 3 and all(map(math.isfinite, mean)) and all(0 < value < math.inf for value in std)
    if not usual or not isinstance(config["label_names"], list) or len(classes) != shape.num_classes:
        raise CheckpointError(f"{folder / CONFIG}: expected 3 means, 3 positive deviations, {shape.num_classes} label_names")
    network = network.to_empty(device="cpu").eval()
    network.load_state_dict(state)
    return Exported(network, statistics, classes)
