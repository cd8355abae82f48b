"""An architecture from whatever names it: text, a file, a run folder, the name of a published genotype."""

import os
from pathlib import Path

from fastdarts.spaces import Architecture, ArchitectureError
from fastdarts.spaces.genotype import Genotype, GenotypeError, read_architecture_json
from fastdarts.spaces.pasted import check_operations, read_pasted
from fastdarts.spaces.published import published, unknown


def architecture_of(text: str) -> Genotype | Architecture:
    """Return the architecture that `text` gives or names.

    text  `Genotype(...)` or `|op~0|+...`, also within other text or as JSON; a file with it; the run folder of a search; or
          the name of a published genotype
    Raises GenotypeError and ArchitectureError (both ValueError), in one line.
    """
    path = Path(os.path.expanduser(text.strip()))
    if any(character in text for character in "(|{\n") and not os.path.exists(path):
        return read_pasted(text)
    if found := published(text):
        if os.path.exists(path) and not os.path.dirname(text):
            raise GenotypeError(f"{text}: a published genotype and a file or folder here: write ./{text} for the latter")
        return found
    try:
        if path.is_dir():
            return _of_run(path)
        if path.is_file():
            return read_pasted(path.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError as error:
        raise GenotypeError(f"{path}: {error.strerror or error}") from error
    except (GenotypeError, ArchitectureError) as error:
        raise type(error)(f"{path}: {error}") from error
    if path.suffix or len(path.parts) > 1:
        raise GenotypeError(f"{path}: no such file or folder")
    raise unknown(text.strip())


def _of_run(folder: Path) -> Genotype | Architecture:
    record = folder / "genotype.json"
    if not record.is_file():
        raise GenotypeError("no genotype.json in this folder: no search, or one that has not finished an epoch")
    cells = read_architecture_json(record.read_text(encoding="utf-8", errors="replace"))
    check_operations(cells)
    return cells
