"""Fast differentiable architecture search with masked image modelling. Commands: `python -m fastdarts.NAME`."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# In a checkout the Triton kernels are next to this folder; an installed package contains them as fastdarts.kernels.
_root = Path(__file__).resolve().parent.parent
if (_root / "CMakeLists.txt").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))


class CallableSearch(ModuleType):
    """Callable module type of the folder `search`: `fastdarts.search("mae-nas-cifar10", data=...)` calls facade.search."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return import_module("fastdarts.facade").search(*args, **settings)


def __getattr__(name: str) -> Any:
    """Load convert, revert and verify of fastdarts.interop, and the callable module search, on first access."""
    if name == "search":
        return import_module("fastdarts.search")
    if name in ("convert", "revert", "verify"):
        from fastdarts import interop

        return getattr(interop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
