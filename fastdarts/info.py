"""`python -m fastdarts.info`: versions, machine, build, and the backend of each op with why no faster one is used.

Works with any dependency missing. `--json` prints the same as JSON. `--require-native` exits with status 1 and the reason
unless the native module is loaded. `--kernels` compiles every Triton kernel for GPUs that need not be present, and prints
each one's registers, shared memory and spilled bytes instead; exits with status 1 and the reason if Triton is unusable.
"""

import importlib
import json
import pkgutil
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastdarts
from fastdarts.logs import any_text
from fastdarts.provenance import BROKEN, apex, machine, torch
from fastdarts.settings.flags import Parser


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
    """Format rows of equal keys, one line each, under a header line."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


@any_text()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 1 if --require-native finds no native module."""
    parser = Parser(prog="python -m fastdarts.info", description=__doc__.partition(":")[2].strip())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--require-native", action="store_true", help="exit 1 unless the native module is loaded")
    parser.add_argument("--kernels", action="store_true", help="print the resources of each GPU kernel; takes a minute or two")
    args = parser.parse_args(argv)
    if args.kernels:
        return _print_kernels(args.json)
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else text(facts))
    if args.require_native and not facts["native"]["loaded"]:
        print(f"fastdarts.info: {facts['native']['reason']}", file=sys.stderr)
        return 1
    return 0


def _print_kernels(as_json: bool) -> int:
    rows, why_not = kernels()
    if why_not:
        print(f"fastdarts.info: no kernels: {why_not}", file=sys.stderr)
        return 1
    print(json.dumps(rows, indent=2) if as_json else table(rows))
    return 0


def _cuda() -> str:
    if not torch:
        return "unknown without torch"
    if torch.version.cuda is None:
        return "none: torch is built for the CPU only"
    return f"{torch.version.cuda}, {'a' if torch.cuda.is_available() else 'no'} device found"


if __name__ == "__main__":
    sys.exit(main())
