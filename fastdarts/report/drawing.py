"""Tolerate failing drawings: matplotlib may be missing or broken, which must not end a search."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager


class NotDrawn(RuntimeError):
    """A drawing failed; the message is one line with the reason."""


@contextmanager
def drawing() -> Generator[None]:
    """Convert any exception of a drawing inside the context to NotDrawn."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise NotDrawn(f"{package} is missing: pip install {package}") from error
    except Exception as error:  # from matplotlib, its imports, a font or a file
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotDrawn(f"{type(error).__name__}: {line}") from error


def import_matplotlib() -> None:
    """Import it even if MPLBACKEND names no backend, which matplotlib treats as an error; these figures need no screen."""
    try:
        import matplotlib
    except ValueError:
        chosen = os.environ.pop("MPLBACKEND", "")
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:  # left by the failed import
            del sys.modules[name]
        try:
            import matplotlib  # noqa: F401
        finally:
            os.environ["MPLBACKEND"] = chosen
