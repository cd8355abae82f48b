"""The network between two ranks is cut: both end with a line inside the time-out, and the checkpoint is whole.

Each rank lives in a network namespace of its own, joined by a virtual cable; needs root, and iproute2.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_search_imagenet import arguments, write_tree

pytestmark = pytest.mark.campaign

TIMEOUT = 10.0  # seconds, of --dist_timeout
PATIENCE = 120.0
HOST, PORT = "10.77.0.{}", 29555


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two, of which each has an end of the cable: end0 with HOST 1, end1 with HOST 2."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, to make network namespaces")
    names = [f"fastdarts{os.getpid()}-{i}" for i in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "end0", "type", "veth", "peer", "name", "end1", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{HOST.format(i + 1)}/24", "dev", f"end{i}")
            for link in ("lo", f"end{i}"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_network_cut_ends_both_ranks_within_timeout(namespaces: list[str], tmp_path: Path) -> None:
    tree, folder, ranks = write_tree(tmp_path / "images"), tmp_path / "run", []
    flags = arguments(tree, "--epochs", "100000", "--threads", "1", "--dist_timeout", str(TIMEOUT), "--save", str(folder))
    for rank, name in enumerate(namespaces):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        variables |= {"MASTER_ADDR": HOST.format(1), "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": f"end{rank}"}
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "fastdarts.search_imagenet", *flags]
        environment = os.environ | {n: str(v) for n, v in variables.items()}
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
            assert [rank.poll() for rank in ranks] == [None, None], [rank.communicate()[1] for rank in ranks]
            time.sleep(0.1)
        ip("-n", namespaces[0], "link", "set", "end0", "down")
        cut = time.monotonic()
        errors = [rank.communicate(timeout=3 * TIMEOUT)[1] for rank in ranks]
        took = time.monotonic() - cut
    finally:
        for rank in ranks:
            rank.kill()
    print(f"both ended {took:.1f} seconds after the cut: {errors}")
    assert [rank.returncode for rank in ranks] == [1, 1]
    for number, error in enumerate(errors):
        assert f"rank {number} of 2 lost the others while summing over the ranks" in error and "Traceback" not in error
    assert took < 2 * TIMEOUT  # one for the collective, and what ending takes
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert 0 < state["epoch"] <= json.loads(lines[-1])["epoch"]
