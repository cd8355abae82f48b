"""Who imports whom, read from the sources: folders point one way, down, and there is no circle among them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# From top to bottom; a name is a folder or a file of fastdarts. Names on one line do not import each other,
# unless SIDEWAYS has it.
LAYERS = """
facade
search_imagenet search_cifar sweep __main__
retrain evaluate count info
cli runs
inputs engine steps search training report
optim
networks data objectives interop nn
supernet
spaces ops
kernels
native
settings
registry
provenance protocols textfile
module_hooks batch quoting _C
logs
"""
SIDEWAYS = {("__main__", "sweep"), ("cli", "runs"), ("inputs", "engine")}
ROOT = "__init__"  # of the package: its version, which anyone may ask for, and what it hands on when asked
# Down, and still not wanted: each layer knows its own matter alone.
CLOSED = {
    "engine": {"settings", "protocols", "batch", "logs", "provenance", "quoting"},  # keeps ANY training going
    "kernels": {"logs", "native"},
    "steps": {"optim", "data", "ops", "kernels", "protocols", "batch"},  # captures, times and plans ANY training
}
NEVER = {("search", "data"), ("data", "supernet"), ("data", "spaces")}


class Import(NamedTuple):
    """One import: of `module`, in line `line` of `file`; `source` and `target` are their folders."""

    file: str
    line: int
    module: str
    source: str
    target: str

    def wrong(self, why: str) -> str:
        return f"{self.file}:{self.line} imports {self.module}: {why}"


def layer(name: str) -> int:
    for number, line in enumerate(LAYERS.strip().splitlines()):
        if name in line.split():
            return number
    raise AssertionError(f"{name} is missing in LAYERS of {Path(__file__).name}")


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the package with its module's name; kernels/ is fastdarts.kernels."""
    for folder, package in ((root / "fastdarts", "fastdarts"), (root / "kernels", "fastdarts.kernels")):
        for path in sorted(folder.rglob("*.py")):
            yield path, ".".join([package, *path.relative_to(folder).with_suffix("").parts])


def targets(node: ast.AST, module: str, modules: set[str]) -> list[str]:
    """The modules of the package that a statement imports, inside functions as elsewhere."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = module.split(".")[: -node.level] if node.level else []
        origin = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{origin}.{alias.name}" for alias in node.names]  # a module of the package, or something in it
        return [name if name in modules else origin for name in names]
    if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
        return [value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return []


def folder_of(module: str) -> str:
    """The name in LAYERS of a module of the package; a folder's __main__ is a command."""
    return "__main__" if module.endswith(".__main__") else [*module.split("."), ROOT][1]


def run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that a type checker alone reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            yield from run_time(node)


def imports(root: Path) -> list[Import]:
    files = list(sources(root))
    modules = {name.removesuffix(".__init__") for _, name in files}
    modules |= {name.rpartition(".")[0] for name in modules if name.count(".") > 1}
    found = []
    for path, module in files:
        for node in run_time(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(node, module, modules):
                if target.split(".")[0] == "fastdarts":
                    ends = folder_of(module), folder_of(target)
                    found.append(Import(path.relative_to(root).as_posix(), node.lineno, target, *ends))
    return [each for each in dict.fromkeys(found) if each.source != each.target]


def why_wrong(each: Import) -> str | None:
    """None, or why that import must not be."""
    ends = each.source, each.target
    if ROOT in ends or ends in SIDEWAYS:
        return None
    above, below = layer(each.source), layer(each.target)
    if each.target not in CLOSED.get(each.source, {each.target}):
        return f"{each.source} imports nothing but {', '.join(sorted(CLOSED[each.source]))}"
    if above >= below:
        return f"{each.target} is {'above' if above > below else 'level with'} {each.source}, imports point down only"
    return "it is none of its business" if ends in NEVER else None


@pytest.fixture(scope="module")
def found(root: Path) -> list[Import]:
    return imports(root)


def test_imports_point_one_way(found: list[Import]) -> None:
    """Levels from top to bottom leave no room for a circle of folders."""
    wrong = [each.wrong(why) for each in found if (why := why_wrong(each))]
    assert not wrong, "\n".join(wrong)


def test_files_form_no_import_cycle(root: Path) -> None:
    """Of imports that run when a module is imported: those inside functions may look back."""
    files = list(sources(root))
    modules = {name.removesuffix(".__init__") for _, name in files}
    graph: dict[str, set[str]] = {}
    for path, module in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module.removesuffix(".__init__")] = {t for node in tree.body for t in targets(node, module, modules)} & modules
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for target in sorted(graph[module] - {module}):
                visit(target, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_every_folder_is_in_layers(root: Path) -> None:
    for _, module in sources(root):
        if folder_of(module) != ROOT:
            layer(folder_of(module))


def test_documented_layers_are_these(root: Path) -> None:
    """The table of docs/architecture.md has the names of each line of LAYERS."""
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?) \|", page.partition("## Who may import whom")[2].partition("\n## ")[0], re.M)
    assert [re.findall(r"`(\w+)`", names) for names in table] == [line.split() for line in LAYERS.strip().splitlines()]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("engine/a.py: from fastdarts.search import Search", "engine imports nothing but"),
        ("engine/a.py: def f():\n    import fastdarts.search.search", "engine imports nothing but"),
        ("spaces/a.py: from fastdarts import supernet", "supernet is above spaces"),
        ("spaces/a.py: from ..supernet import base", "supernet is above spaces"),
        ("ops/a.py: from importlib import import_module\nimport_module('fastdarts.spaces')", "spaces is level with ops"),
        ("search/a.py: from fastdarts.data import Loader", "none of its business"),
        ("runs/a.py: from fastdarts.cli.command import Command", "cli is level with runs"),
    ],
)
def test_forbidden_import_is_named(line: str, says: str, tmp_path: Path) -> None:
    """Wherever and however it is written, without reporting correct imports."""
    name, _, text = line.partition(": ")
    for folder in ("engine", "search", "spaces", "supernet", "ops", "runs", "cli", "data"):
        (tmp_path / "fastdarts" / folder).mkdir(parents=True)
        (tmp_path / "fastdarts" / folder / "__init__.py").write_text("from fastdarts import batch\nimport torch\n")
    (tmp_path / "fastdarts" / "supernet" / "base.py").write_text("")
    (tmp_path / "fastdarts" / "batch.py").write_text("")
    (tmp_path / "fastdarts" / name).write_text(text)
    messages = [each.wrong(why) for each in imports(tmp_path) if (why := why_wrong(each))]
    assert len(messages) == 1 and messages[0].startswith(f"fastdarts/{name}:") and says in messages[0], messages
