"""Facts about an installation: versions, machine, build, backend of each op, resources of each GPU kernel.

Everything works with any dependency missing.
"""

import importlib
import pkgutil
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastdarts
from fastdarts.provenance import BROKEN, apex, machine, torch


def version(package: str) -> str:
    """Return the package's version, "not installed", or the error of its import."""
    try:
        if find_spec(package.partition(".")[0]) is None:
            return "not installed"
        return importlib.import_module(package).__version__
    except ModuleNotFoundError as error:
        return "not installed" if error.name and package.startswith(error.name) else f"not usable: {error}"
    except BROKEN as error:
        return f"not usable: {error}".splitlines()[0]


def native_module() -> dict[str, Any]:
    """Return whether the native module is loaded or why not, its build record, and its facts on this machine."""
    if not torch:
        return {"loaded": False, "reason": "torch is not usable", "build": None}
    from fastdarts import native

    facts: dict[str, Any] = {"loaded": native.module() is not None, "reason": native.reason(), "build": native.build()}
    if module := native.module():
        facts |= {"compiled": module.build_facts(), "cpu": module.cpu_features(), "threads": module.threads()}
        facts["kernels"] = {"instructions": module.isa()}
    return facts


def op_backends() -> list[dict[str, Any]]:
    """Return the rows of ops.backend.describe() for every op of the library."""
    if not torch:
        return []
    from fastdarts import ops
    from fastdarts.ops import backend

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"fastdarts.ops.{module.name}")
    return backend.describe()


def collect() -> dict[str, Any]:
    """Return all facts as JSON-compatible values."""
    packages = {"torch": "torch", "torchvision": "torchvision", "triton": "triton", "dali": "nvidia.dali"}
    packages |= {"numpy": "numpy", "pillow": "PIL", "matplotlib": "matplotlib"}
    versions = {"fastdarts": fastdarts.__version__, "python": platform.python_version()}
    versions |= {name: version(package) for name, package in packages.items()}
    versions["cuda"] = _cuda()
    versions["apex"] = apex()
    return {"versions": versions, "machine": machine(), "native": native_module(), "ops": op_backends()}


def kernels() -> tuple[list[dict[str, Any]], str | None]:
    """Return a row for each Triton kernel (kernels.compile) and each CUDA kernel of the native module (kernels.cuda_resources).

    Or no rows, and a sentence with the reason. Without CUDA kernels or cuobjdump, only the Triton kernels' rows.
    """
    if not torch:
        return [], "torch is not usable"
    from fastdarts import native
    from fastdarts.ops import backend

    if why := backend.lacks_triton():
        return [], why
    from fastdarts.kernels import compile, cuda_resources

    if native.without_cuda() or cuda_resources.cuobjdump() is None:
        return compile.report(), None
    return compile.report() + cuda_resources.report(Path(str(native.required().__file__))), None


def text(facts: dict[str, Any]) -> str:
    """Format the facts as text."""
    lines = []
    for title in ("versions", "machine"):
        lines.append(title)
        for name, value in facts[title].items():
            lines.append(f"  {name:12} {'; '.join(value) or 'none' if isinstance(value, list) else value}")
    native = facts["native"]
    lines += ["native module", f"  {'loaded' if native['loaded'] else native['reason']}"]
    for part in ("build", "compiled", "cpu", "kernels", "threads"):
        values = native.get(part) or {}
        if "skipped" not in values and values:
            lines.append(
                f"  {part:12} "
                + ", ".join(f"{name} {value}" for name, value in values.items() if value != "" and name != "sources")
            )
    lines.append("ops")
    for row in facts["ops"]:
        lines.append(f"  {row['op']} on {row['device']}, {row['dtype']}: {row['backend']}")
        lines += [f"    not {name}: {why}" for name, why in row["refused"].items()]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows of equal keys, one line each, under a header line; nothing for no rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cuda() -> str:
    if not torch:
        return "unknown without torch"
    if torch.version.cuda is None:
        return "none: torch is built for the CPU only"
    return f"{torch.version.cuda}, {'a' if torch.cuda.is_available() else 'no'} device found"
