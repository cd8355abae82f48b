"""Provenance of a result: code, versions and machine. Works without a usable torch."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastdarts

# observed errors on importing a broken package (torchvision with a mismatched torch: RuntimeError; matplotlib with an unknown
# backend in MPLBACKEND: ValueError)
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, ValueError)
PACKAGES = ("triton", "torchvision", "numpy", "pillow", "matplotlib", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "apex")
NVIDIAS = "NVIDIA's"  # prefix of apex() for NVIDIA's package

try:
    import torch
except BROKEN:
    torch = None


def commit() -> str:
    """Return the checkout's commit, with `+changes` if tracked files outside bench/results differ from it.

    Returns the version outside a checkout.
    """
    root = Path(fastdarts.__file__).resolve().parent.parent
    try:
        top, head = _git(root, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top) != root:
            return f"fastdarts {fastdarts.__version__}"
        files = "--", ".", ":(exclude)bench/results"  # a result file does not affect the next measurement
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no", *files) else "")
    except (OSError, ValueError, subprocess.SubprocessError):  # no git, or no repository
        return f"fastdarts {fastdarts.__version__}"


def versions() -> dict[str, str]:
    """Return the versions of Python, of torch and its CUDA, and of other installed packages."""
    found = {"fastdarts": fastdarts.__version__, "python": platform.python_version()}
    if torch:
        found |= {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return operating system, processor, cores, memory in GiB, GPUs, torch's threads and its vector width."""
    facts: dict[str, Any] = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    if hasattr(os, "sysconf"):
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["gpus"] = []
    if torch:
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            facts["gpus"].append(f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB")
        facts |= {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return facts


def apex() -> str:
    """Identify NVIDIA's apex: the package of that name on PyPI is another project. Imports nothing."""
    spec = find_spec("apex")
    if spec is None:
        return "not installed"
    if any((Path(folder) / "optimizers").is_dir() for folder in spec.submodule_search_locations or ()):
        return f"{NVIDIAS}, with apex.optimizers"
    return "an unrelated package of that name (the one on PyPI), not NVIDIA's apex; not used"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]  # a killed git would leave a lock
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
