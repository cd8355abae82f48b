"""`python -m fastdarts.report RUN` makes a run's report anew; `--genotype` draws the cells of any genotype."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from fastdarts.flags import path_of
from fastdarts.genotype import GenotypeError, read_architecture, read_architecture_json
from fastdarts.logs import any_text
from fastdarts.report import ReportError, draw_cell, write_report
from fastdarts.spaces import ArchitectureError


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, as all other wrong input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


@any_text()
def main(arguments: list[str] | None = None) -> int:
    """Run the command (None: with the process' arguments). The exit status is 2 for wrong input, one line on stderr."""
    parser = _Parser(prog="python -m fastdarts.report", description=__doc__)
    parser.add_argument("run", nargs="?", type=path_of, metavar="RUN", help="run folder of a search, finished or not")
    parser.add_argument(
        "--genotype", metavar="TEXT|FILE", help="Genotype(...) or |op~0|+..., or a file of either as text or as JSON"
    )
    parser.add_argument("--out", type=path_of, metavar="DIR", help="where the drawings of --genotype go (default: here)")
    given = parser.parse_args(arguments)
    if (given.run is None) == (given.genotype is None):
        parser.error("give either RUN or --genotype")
    if given.out and not given.genotype:
        parser.error("--out goes with --genotype; the report of a run is written into its folder")
    try:
        written = [write_report(given.run)] if given.run else _draw(given.genotype, given.out or Path())
    except (ReportError, GenotypeError, ArchitectureError, OSError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(*written, sep="\n")
    return 0


def _draw(genotype: str, folder: Path) -> list[Path]:
    """Draw the cells of a genotype given as text or file. Raises GenotypeError, ArchitectureError, OSError."""
    text = genotype if genotype.lstrip().startswith(("Genotype(", "|")) else path_of(genotype).read_text(errors="replace")
    cells = read_architecture_json(text) if text.lstrip().startswith("{") else read_architecture(text)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"cell_{kind}" for kind in cells.wirings()}
    for kind, path in paths.items():
        draw_cell(cells, kind, path)
    return [Path(f"{path}{suffix}") for path in paths.values() for suffix in (".svg", ".png")]


if __name__ == "__main__":
    sys.exit(main())
