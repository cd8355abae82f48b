"""The instructions of a compiled kernel: what each is, what it waits for, and the source lines that it comes from.

nvdisasm prints them (it comes with Triton). The control bits of an instruction (64 bits after its first 64) say how many cycles
its warp stalls after it, which of six scoreboards it sets when it ends, and which ones it waits for.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from triton import knobs

from bench.sass.programs import Chain

COMMENT = re.compile(r'//## File "(?P<file>[^"]+)", line (?P<line>\d+)')
LABEL = re.compile(r"^(\.L_x_\d+):")
CODE = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:(?P<predicate>@!?U?P[0-9T]+)\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)\s*(?P<rest>.*?);?\s*"
    r"/\* 0x[0-9a-f]{16} \*/"
)
CONTROL = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
LOC = re.compile(r"\.loc[^/\n]*// (.*)")
PLACE = re.compile(r"([^\s/:]+):(\d+):\d+")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
NONE = 7  # no scoreboard
INTEGER = {
    *("IMAD", "IADD3", "LEA", "IABS", "ISETP", "LOP3", "SHF", "PRMT", "SEL"),
    *("IMNMX", "VIMNMX", "VIADD", "PLOP3", "MOV", "POPC", "BREV", "LEPC", "R2P"),
    *("P2R", "VIADDMNMX", "CS2R", "FLO", "ISCADD", "IDP", "BMSK", "SGXT", "VOTE"),
    *("LOP"),
}
CONTROL_FLOW = {"BRA", "EXIT", "BSSY", "BSYNC", "WARPSYNC", "RET", "CALL", "NOP", "BRX", "BREAK", "JMP", "YIELD"}
WIDTHS = (".128", ".64", ".U16", ".S16", ".U8", ".S8")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    opcode      with its modifiers
    predicated  runs for some threads only, and is issued all the same
    target      label of a branch
    label       in front of it
    chain       source lines, from the kernel inwards; 0: of several lines merged
    stall       cycles until the warp's next one
    sets        scoreboards that its end releases: of its result, of its operands; NONE
    waits       bits of the scoreboards that it waits for
    """

    opcode: str
    predicated: bool
    target: str | None
    label: str | None
    chain: Chain
    stall: int
    sets: tuple[int, int]
    waits: int

    @property
    def kind(self) -> str:
        """Return its class: of loads and stores with bits a thread ("LDG 128"), of others the unit or the opcode."""
        base, *_ = self.opcode.split(".")
        if base in ("LDG", "STG", "LDS", "STS", "LDL", "STL"):
            width = next((w for w in WIDTHS if w in self.opcode), ".32")
            return f"{base} {width.strip('.US')}"
        if base in CONTROL_FLOW:
            return "control"
        if base in INTEGER:
            return "integer"
        if base.startswith(("U", "R2UR", "S2UR")) and not base.startswith("UBLK"):
            return "uniform"
        if base in ("HFMA2", "HADD2", "HMUL2", "HSET2", "HSETP2", "HMNMX2"):
            return "half"
        return base


def parse(text: str) -> list[Instruction]:
    """Parse what nvdisasm prints with line information and encodings. Raises ValueError if these are missing."""
    found: list[Instruction] = []
    chain: list[tuple[str, int]] = []
    label, fresh, pending = None, False, None
    for line in text.splitlines():
        if match := COMMENT.search(line):
            chain = [] if not fresh else chain
            fresh = True
            chain.append((Path(match["file"]).name, int(match["line"])))
        elif match := LABEL.match(line):
            label = match[1]
        elif match := CODE.search(line):
            pending, fresh = match, False
        elif pending is not None and (match := CONTROL.match(line)):
            found.append(_instruction(pending, int(match[1], 16), label, tuple(reversed(chain))))
            label = pending = None
    if not any(one.chain for one in found):
        raise ValueError("no instructions with line numbers: is TRITON_DISABLE_LINE_INFO set?")
    return found


def _instruction(match: re.Match[str], control: int, label: str | None, chain: Chain) -> Instruction:
    bits = control >> 41
    target = TARGET.search(match["rest"])
    return Instruction(
        match["opcode"],
        match["predicate"] is not None,
        target[1] if target and match["opcode"].startswith("BRA") else None,
        label,
        chain,
        bits & 0xF,
        (bits >> 5 & 7, bits >> 8 & 7),
        bits >> 11 & 0x3F,
    )


def disassemble(cubin: bytes, ptx: str) -> list[Instruction]:
    """Return the instructions of a cubin's only function.

    Compilers before LLVM 22 (Triton 3.6) name the calls that lead to a line in PTX's comments alone. Then the PTX is assembled
    again with numbered lines. Raises ValueError if that gives other instructions.
    """
    listed = parse(_listing(cubin))
    if "inlined_at" in ptx or "@[" not in ptx:
        return listed
    chains: list[Chain] = [()]

    def numbered(match: re.Match[str]) -> str:
        chains.append(tuple((name, int(line)) for name, line in reversed(PLACE.findall(match[1]))))
        return f".loc 1 {len(chains) - 1} 0"

    again = parse(_listing(_assembled(LOC.sub(numbered, ptx))))
    if [one.opcode for one in again] != [one.opcode for one in listed]:
        raise ValueError("assembled again, the kernel has other instructions")
    return [replace(one, chain=chains[one.chain[-1][1]] if one.chain else ()) for one in again]


def _assembled(ptx: str) -> bytes:
    """Return the cubin that Triton's ptxas makes, as Triton calls it."""
    arch = re.search(r"\.target\s+(\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [knobs.nvidia.ptxas.path, "-lineinfo", f"--gpu-name={arch[1] if arch else 'sm_90a'}", str(source)]
        subprocess.run([*command, "-o", str(cubin)], capture_output=True, check=True)
        return cubin.read_bytes()


def _listing(cubin: bytes) -> str:
    """Return what nvdisasm prints, with line information and encodings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", "-gi", "-hex", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
