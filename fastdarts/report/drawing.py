"""Drawings that may fail: matplotlib may be missing or broken, and no drawing is worth a search."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager


class NotDrawn(RuntimeError):
    """A drawing that could not be made; the message is one line that says why."""


@contextmanager
def drawing() -> Generator[None]:
    """Inside, whatever a drawing raises becomes NotDrawn."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise NotDrawn(f"{package} is missing: pip install {package}") from error
    except Exception as error:  # of matplotlib, of what it imports, of a font or a file
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotDrawn(f"{type(error).__name__}: {line}") from error


def import_matplotlib() -> None:
    """Import it, also where MPLBACKEND names no backend, which it takes for an error; figures here need none of a screen."""
    try:
        import matplotlib
    except ValueError:
        chosen = os.environ.pop("MPLBACKEND", "")
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:  # what the failed import left
            del sys.modules[name]
        try:
            import matplotlib  # noqa: F401
        finally:
            os.environ["MPLBACKEND"] = chosen
