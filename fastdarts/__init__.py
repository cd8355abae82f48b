"""Differentiable architecture search with masked image modelling, fast. Commands: `python -m fastdarts.NAME`."""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout the Triton kernels lie beside this folder; an installed package has them inside it, as fastdarts.kernels.
_root = Path(__file__).resolve().parent.parent
if (_root / "CMakeLists.txt").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """convert, revert and verify of fastdarts.interop, loaded when they are asked for."""
    if name in ("convert", "revert", "verify"):
        from fastdarts import interop

        return getattr(interop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
