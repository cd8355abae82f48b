"""`python -m fastdarts.report RUN` rebuilds a run's report; `--genotype` draws the cells of any genotype."""

import sys
from pathlib import Path

from fastdarts.cli.modules import import_modules
from fastdarts.cli.parser import Parser
from fastdarts.logs import any_text
from fastdarts.report import NotDrawn, ReportError, write_report, write_retrain_report
from fastdarts.report.drawing import drawing, import_matplotlib
from fastdarts.report.run import read_run
from fastdarts.settings import ConfigError
from fastdarts.settings.values import path_of
from fastdarts.spaces import ArchitectureError
from fastdarts.spaces.architecture import architecture_of
from fastdarts.spaces.genotype import GenotypeError


@any_text()
def main(arguments: list[str] | None = None) -> int:
    """Run the command (None: with the process' arguments) and return its status: 2 for wrong input, one line on stderr."""
    parser = Parser(prog="python -m fastdarts.report", description=__doc__)
    parser.add_argument("run", nargs="?", type=path_of, metavar="RUN", help="run folder of a search, finished or not")
    parser.add_argument(
        "--genotype",
        metavar="TEXT|FILE|RUN|NAME",
        help="as printed or logged, a file with it, a run, or a published name",
    )
    parser.add_argument("--modules", metavar="NAME,...", help="modules that register custom candidates, for --genotype")
    parser.add_argument(
        "--out", type=path_of, metavar="DIR", help="output folder of --genotype's drawings (default: current folder)"
    )
    args = parser.parse_args(arguments)
    if (args.run is None) == (args.genotype is None):
        parser.error("give either RUN or --genotype")
    if args.out and not args.genotype:
        parser.error("--out requires --genotype; the report of a run is written into its folder")
    if args.modules and not args.genotype:
        parser.error("--modules requires --genotype; a run's report needs no modules")
    try:
        import_modules(args.modules)
        written = [_report(args.run)] if args.run else _draw(args.genotype, args.out or Path())
    except (ReportError, GenotypeError, ArchitectureError, ConfigError, NotDrawn, OSError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, NotDrawn) else 2
    print(*written, sep="\n")
    return 0


def _report(run: Path) -> Path:
    """Write the report of a run of either kind. Raises ReportError, OSError."""
    write = write_retrain_report if read_run(run).settings.get("command") == "retrain" else write_report
    return write(run)


def _draw(genotype: str, folder: Path) -> list[Path]:
    """Draw the cells of a genotype (spaces.architecture_of).

    Raises ReportError, GenotypeError, ArchitectureError, NotDrawn, OSError.
    """
    cells = architecture_of(genotype)
    if any((folder / name).exists() for name in ("settings.json", "metrics.jsonl")):
        raise ReportError(f"--out: {folder} contains a run, whose drawings would be overwritten: choose another folder")
    paths = {kind: folder / f"cell_{kind}" for kind in cells.wirings()}
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        import_matplotlib()
        from fastdarts.report.cells import draw_cell

        for kind, path in paths.items():
            draw_cell(cells, kind, path)
    return [Path(f"{path}{suffix}") for path in paths.values() for suffix in (".svg", ".png")]


if __name__ == "__main__":
    sys.exit(main())
