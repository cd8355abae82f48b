"""README and docs: examples run, links resolve, the architecture tree matches the package, the site builds."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

NETWORK = """
import torch
import fastdarts
from tests.zoo.darts import Network as Darts

C, num_classes, layers, criterion = 4, 10, 3, None
x = torch.randn(2, 3, 16, 16)


def Network(C, num_classes, layers, criterion):
    return Darts(C, layers)


"""  # what a reader has who converts a network


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def run(code: str, root: Path, tmp_path: Path) -> str:
    """What a program prints. `root` is on its path, it starts elsewhere."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_search_example_runs(root: Path, tmp_path: Path) -> None:
    _, search = blocks(root / "README.md")
    lines = run(search, root, tmp_path).splitlines()
    assert lines[-1].startswith("Genotype(normal=[") and len(lines) == 3


def test_convert_examples_run(root: Path, tmp_path: Path) -> None:
    """README's and the page's, on one network each."""
    code = blocks(root / "README.md")[0]
    message = run(f"{NETWORK}{code}\n{NETWORK}{blocks(root / 'docs' / 'convert.md')[0]}", root, tmp_path)
    assert message.startswith("cell: cells.0") and message.count("times faster") == 2


def test_networks_example_runs(root: Path) -> None:
    """In this process; the other example needs a published file."""
    names: dict[str, Any] = {}
    exec(blocks(root / "docs" / "networks.md")[0], names)
    assert names["logits"].shape == names["auxiliary"].shape == (2, 10)


def test_tree_names_every_module_and_folder(root: Path) -> None:
    (tree,) = re.findall(r"```\n(fastdarts/\n.*?)```", (root / "docs" / "architecture.md").read_text(), re.S)
    for path in (root / "fastdarts").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in tree
        elif path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in tree
    for name in re.findall(r"\b\w+\.py\b", tree):
        assert list(root.glob(f"*/{name}")) or list(root.glob(f"**/{name}")), name


def test_tree_repeats_package_summaries(root: Path) -> None:
    """The line of each folder starts with the summary of its `__init__`."""
    (tree,) = re.findall(r"```\n(fastdarts/\n.*?)```", (root / "docs" / "architecture.md").read_text(), re.S)
    for folder in (*(root / "fastdarts").iterdir(), root / "kernels"):
        if (folder / "__init__.py").exists():
            docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
            summary = re.split(r"[.(;]\s|\.$| \(", docstring)[0]
            line = re.search(rf"^ *{folder.name}/(.*?)(?=^ {{,3}}\S)", f"{tree}x", re.S | re.M)
            assert line and " ".join(line[1].split()).lower().startswith(" ".join(summary.split()).lower()), folder.name


def test_links_between_pages_resolve(root: Path) -> None:
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_is_short(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").split()) <= 1900


def test_site_builds_strictly(root: Path, tmp_path: Path) -> None:
    """With every table in it: the pages of searching and of retraining list each setting of their commands."""
    pytest.importorskip("mkdocs")
    from fastdarts.settings import EvaluateSettings, RetrainSettings, SearchCifarSettings, SearchImagenetSettings

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*/index.html")}
    assert not [name for name, page in pages.items() if "{{" in page]
    classes = {"search": (SearchCifarSettings, SearchImagenetSettings), "retrain": (RetrainSettings, EvaluateSettings)}
    for name, settings in classes.items():
        wanted = {f.name.upper() if f.metadata["positional"] else f"--{f.name}" for s in settings for f in fields(s)}
        assert not [flag for flag in wanted if f"<code>{flag}</code>" not in pages[name]]
    assert "PC_DARTS_cifar" in pages["networks"] and "thop_bn4" in pages["networks"]
