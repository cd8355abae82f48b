"""`python -m fastdarts.info`: versions, machine, build, and the backend of each op with why no faster one is used.

Works with any dependency missing. `--json` prints JSON. `--require-native` exits with status 1 unless the native module is
loaded. `--kernels` compiles every Triton kernel, without a GPU, and prints registers, shared memory and spilled bytes.
"""

import json
import sys

from fastdarts.logs import any_text
from fastdarts.runs import info
from fastdarts.settings.flags import Parser


@any_text()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 1 if --require-native finds no native module."""
    parser = Parser(prog="python -m fastdarts.info", description=__doc__.partition(":")[2].strip())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--require-native", action="store_true", help="exit 1 unless the native module is loaded")
    parser.add_argument("--kernels", action="store_true", help="print the resources of each GPU kernel; takes a minute or two")
    args = parser.parse_args(argv)
    if args.kernels:
        found, why_not = info.kernels()
        why_not, shown = f"no kernels: {why_not}" if why_not else None, info.table(found)
    else:
        found = info.collect()
        lacking = args.require_native and not found["native"]["loaded"]
        why_not, shown = found["native"]["reason"] if lacking else None, info.text(found)
    if found:
        print(json.dumps(found, indent=2) if args.json else shown)
    if why_not:
        print(f"fastdarts.info: {why_not}", file=sys.stderr)
    return int(bool(why_not))


if __name__ == "__main__":
    sys.exit(main())
