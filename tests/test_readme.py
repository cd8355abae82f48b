"""The README's example runs, and its tree names what is there."""

import re
import subprocess
import sys


def test_the_example_runs(root, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
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
