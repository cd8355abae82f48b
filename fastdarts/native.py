"""Native module `fastdarts._C`: loaded on first use, rejected with a sentence if incompatible.

Loading registers the C++ kernels with torch's dispatcher; the modules in fastdarts.ops define their schemas. The build writes
`_build.json` next to it: the torch version it was built against and how, or `skipped` with the reason.
"""

import hashlib
import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

RECORD = Path(__file__).with_name("_build.json")
SOURCES = Path(__file__).parent.parent / "csrc"  # in a checkout
BUILD = "pip install --no-build-isolation -e ."


def build() -> dict[str, Any] | None:
    """Return the build record, or None without a build."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else None


def digest(sources: Path) -> str | None:
    """Return the digest of the C++ sources, or None without sources (an installed wheel)."""
    files = sorted(path for path in sources.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest() if files else None


def refusal(record: dict[str, Any] | None, running: str, sources: str | None = None) -> str | None:
    """Return why a module with this build record is incompatible with torch version `running`, or None.

    sources: digest of the C++ sources next to the package, if any; a module of other sources may have other ops.
    """
    if record is None:
        return f"the native module is not built; build it in the checkout: {BUILD}"
    if "skipped" in record:
        return f"the native module was not built: {record['skipped']}"
    if record["torch"] != running:
        return f"the native module was built for torch {record['torch']}, not for torch {running}; rebuild it: {BUILD}"
    if sources and record.get("sources") != sources:
        return f"the native module was built from other sources than this checkout's; rebuild it: {BUILD}"
    return None


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """Return the module and None, or None and a sentence with the reason; cached per process."""
    if sentence := refusal(build(), torch.__version__, digest(SOURCES)):
        return None, sentence
    try:
        return importlib.import_module("fastdarts._C"), None
    except ImportError as error:
        return None, f"the native module is recorded as built but does not load ({error}); rebuild it: {BUILD}"


def module() -> ModuleType | None:
    """Return fastdarts._C, or None (reason() gives the reason)."""
    return load()[0]


def required() -> ModuleType:
    """Return fastdarts._C. Raises RuntimeError with the reason if it is missing."""
    module, why = load()
    if module is None:
        raise RuntimeError(why)
    return module


def reason() -> str | None:
    """Return None if the native module is loaded, else a sentence with the reason."""
    return load()[1]


def has(op: str, key: str) -> bool:
    """Return whether `fastdarts::op` has a kernel for a dispatch key ("CPU", "CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdarts::{op}", key)


def without_cuda() -> str | None:
    """Return why the native module has no CUDA kernels, or None if it has."""
    if module() is None:
        return reason()
    if hasattr(module(), "cuda_launches"):
        return None
    why = (build() or {}).get("cuda_skipped") or "it was built from an older checkout"
    return f"the native module has no CUDA kernels: {why}"


def lacks(op: str) -> str | None:
    """Return why the loaded module lacks `fastdarts::op` (it was built before the op existed), or None."""
    if has(op, "CPU"):
        return None
    return f"the native module was built from an older checkout, without {op}; rebuild it: {BUILD}"
