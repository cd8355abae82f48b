"""The README's example runs, and its tree names what is there."""

import re
import subprocess
import sys

NETWORK = """
import torch
import fastdarts
from tests.zoo.darts import Network as Darts

C, num_classes, layers, criterion = 4, 10, 3, None
x = torch.randn(2, 3, 16, 16)


def Network(C, num_classes, layers, criterion):
    return Darts(C, layers)


"""  # what somebody has who reads how to convert it


def test_the_example_runs(root, tmp_path):
    code, *_ = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Genotype(normal=[") and len(done.stdout.splitlines()) == 3


def test_the_tree_names_every_module_and_folder(root):
    text = (root / "README.md").read_text()
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", text, re.S)
    for path in (root / "fastdarts").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in tree
        elif path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in tree
    for name in re.findall(r"\b\w+\.py\b", tree):
        assert list(root.glob(f"*/{name}")) or list(root.glob(f"**/{name}")), name


def test_the_conversion_of_somebodys_network_runs(root):
    _, *codes = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    assert len(codes) == 2
    done = subprocess.run([sys.executable, "-c", NETWORK + "\n".join(codes)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cell: cells.0") and "times faster" in done.stdout
