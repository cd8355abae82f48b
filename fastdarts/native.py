"""The native module `fastdarts._C`: loaded when first asked for, refused with a sentence when it does not fit.

Loading it registers the C++ kernels with torch's dispatcher; their schemas are defined by the modules in fastdarts.ops.
The build leaves `_build.json` beside it: the torch it was built against and how, or `skipped`, why nothing was built.
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
    """What the build recorded, or None where nothing was built."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else None


def digest(sources: Path) -> str | None:
    """What tells one state of the C++ sources from another, or None where there are none (an installed wheel)."""
    files = sorted(path for path in sources.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest() if files else None


def refusal(record: dict[str, Any] | None, running: str, sources: str | None = None) -> str | None:
    """Why a module with this build record cannot serve the torch whose version is `running`, or None.

    sources: the digest of the C++ sources beside the package, if there are any; a module of others may know other ops.
    """
    if record is None:
        return f"the native module is not built; build it in the checkout: {BUILD}"
    if "skipped" in record:
        return f"the native module was left out: {record['skipped']}"
    if record["torch"] != running:
        return f"the native module was built for torch {record['torch']}, this is torch {running}; rebuild it: {BUILD}"
    if sources and record.get("sources") != sources:
        return f"the native module was built from other sources than this checkout's; rebuild it: {BUILD}"
    return None


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The module and None, or None and the sentence why not; decided once a process."""
    if sentence := refusal(build(), torch.__version__, digest(SOURCES)):
        return None, sentence
    try:
        return importlib.import_module("fastdarts._C"), None
    except ImportError as error:
        return None, f"the native module is recorded as built but does not load ({error}); rebuild it: {BUILD}"


def module() -> ModuleType | None:
    """fastdarts._C, or None (then reason() says why)."""
    return load()[0]


def required() -> ModuleType:
    """fastdarts._C. Raises RuntimeError, which says why, without it."""
    module, why = load()
    if module is None:
        raise RuntimeError(why)
    return module


def reason() -> str | None:
    """None when the native module is loaded, else the sentence why it is not."""
    return load()[1]


def has(op: str, key: str) -> bool:
    """Whether `fastdarts::op` has a kernel for a dispatch key ("CPU", "CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdarts::{op}", key)


def without_cuda() -> str | None:
    """Why there are no CUDA kernels of the native module, or None where there are."""
    if module() is None:
        return reason()
    if hasattr(module(), "cuda_launches"):
        return None
    why = (build() or {}).get("cuda_skipped") or "it was built from an older checkout"
    return f"the native module has no CUDA kernels: {why}"


def lacks(op: str) -> str | None:
    """Why the loaded module does not serve the op `fastdarts::op` (it was built before there was one), or None."""
    if has(op, "CPU"):
        return None
    return f"the native module was built from an older checkout, without {op}; rebuild it: {BUILD}"
