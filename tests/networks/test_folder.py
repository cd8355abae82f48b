"""A network written to a folder and read again; folders that are none or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts.networks import (
    CheckpointError,
    DiscreteNetwork,
    NetworkShape,
    architecture_of,
    build,
    read_network,
    write_network,
)

pytestmark = pytest.mark.usefixtures("one_thread")
STATISTICS = (0.5, 0.25, 0.125), (0.2, 0.3, 0.4)
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def network_of(architecture: str, kind: str) -> DiscreteNetwork:
    torch.manual_seed(0)
    return build(architecture_of(architecture), NetworkShape(kind, 4, 3, 2, kind == "cifar", image_size=32)).eval()


@pytest.mark.parametrize(("architecture", "kind"), [("DARTS_V2", "cifar"), ("FairDARTS_a", "cifar"), (CELL, "nasbench201")])
def test_network_is_read_as_written(architecture: str, kind: str, tmp_path: Path) -> None:
    network = network_of(architecture, kind)
    write_network(tmp_path / "new" / "folder", network, STATISTICS, ["cat", "dog"], {"commit": "0123abc"})
    found = read_network(tmp_path / "new" / "folder")
    assert (found.statistics, found.classes, found.network.shape) == (STATISTICS, ("cat", "dog"), network.shape)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.network(x).logits, network(x).logits)
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32] and config["fastdarts"] == {"commit": "0123abc"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_args": {}}, "KeyError"),
        ({"model_args": {"genotype": "nonsense"}}, "config.json: not of an exported network"),
        ({"label_names": ["cat"]}, "2 label_names"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [1, 1, 1]}}, "3 means"),
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "3 positive deviations"),
        ({"label_names": "ab"}, "2 label_names"),
    ],
)
def test_wrong_configs_are_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_network(tmp_path, network_of("DARTS_V2", "cifar"), STATISTICS, ["cat", "dog"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=says) as raised:
        read_network(tmp_path)
    assert "\n" not in str(raised.value)


def test_other_weights_and_damaged_files_are_refused(tmp_path: Path) -> None:
    write_network(tmp_path / "a", network_of("DARTS_V2", "cifar"), STATISTICS, ["cat", "dog"])
    write_network(tmp_path / "b", network_of("PDARTS", "cifar"), STATISTICS, ["cat", "dog"])
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="of another genotype or network"):
        read_network(tmp_path / "a")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_network(tmp_path / "b")
    with pytest.raises(CheckpointError, match="not of an exported network"):
        read_network(tmp_path)
    with pytest.raises(ValueError, match="3 names of classes for a network of 2"):
        write_network(tmp_path, network_of("DARTS_V2", "cifar"), STATISTICS, ["cat", "dog", "owl"])
