"""Predicted time of a launch on an H200: the largest of what issues its instructions, what one program waits for, its bytes.

Nothing here has been measured on a GPU; a first run there corrects the table of constants. Registers and shared memory say how
many programs an SM holds; the programs beyond follow in waves.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from bench.sass.control_flow import Flow, by_kind
from bench.sass.machine_code import NONE, Instruction
from bench.sass.programs import Passes

SMS = 132  # of an H200
CLOCK = 1.85e9  # Hz that an SM keeps under load; the boost clock is 1.98e9
ISSUE = 0.60  # share of the four warp instructions a cycle that kernels bound by them reach
BANDWIDTH = 0.85 * 4.3e12  # bytes/s: copies reach 4.3e12 (bench.ceilings' peak), kernels 85 % of it
OVERHEAD = 1.3e-6  # seconds between two kernels of a CUDA graph: the gap and the first instructions
REGISTERS, THREADS, SHARED, PROGRAMS = 65536, 2048, 227 * 1024, 32  # of an SM
SHARED_EACH = 1024  # bytes of shared memory that the hardware takes for each program
WARP = 32

# cycles from the issue of an instruction to its result, where it has no fixed latency
LATENCY = {
    "LDG": 407,  # 0.22 us, a hit in L2 under load; HBM answers after 0.5 us
    **dict.fromkeys(("LDS", "LDSM", "SHFL"), 28),  # shared memory and the crossbar
    **dict.fromkeys(("LDC", "S2R", "S2UR", "LDL"), 40),  # constant cache, special registers, L1
    **dict.fromkeys(("MUFU", "I2F", "F2I", "F2F", "DADD", "DMUL", "DFMA"), 24),  # units of a quarter or half of the rate
}
L1 = 40  # cycles of a block's loads after its first answer: of weights, and of pixels next to the first ones
OTHER = 16  # cycles of any other instruction that sets a scoreboard: a store that has read its operands, for one
BARRIER = 30  # cycles in which a program's warps meet
MATRIX = 64  # cycles of a warp group's product of 64 x 16 x 16

# cycles that one warp instruction keeps a unit which all of an SM's warps share
SHARED_UNITS = {
    "memory": {f"{name} {bits}": max(1.0, bits / 32) for name in ("LDG", "STG", "LDS", "STS") for bits in (8, 16, 32, 64, 128)}
    | {"SHFL": 1.0, "LDSM": 4.0, "STSM": 4.0},  # 128 bytes a cycle
    "special": dict.fromkeys(("MUFU", "I2F", "F2I", "F2F"), 2.0),  # 16 lanes
    "float64": dict.fromkeys(("DADD", "DMUL", "DFMA"), 0.5),  # 64 lanes
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers of a thread, warps and shared bytes of a program, spilled bytes of a thread."""

    registers: int
    warps: int
    shared_bytes: int
    spill_bytes: int

    @property
    def resident(self) -> int:
        """Return how many programs an SM holds."""
        threads = WARP * self.warps
        by_registers = REGISTERS // (-(-max(self.registers, 1) // 8) * 8 * threads)
        return max(1, min(by_registers, THREADS // threads, SHARED // (self.shared_bytes + SHARED_EACH), PROGRAMS))


@dataclass(frozen=True)
class Prediction:
    """Predicted times of a launch in microseconds, from machine code.

    instructions   of all its warps
    issue_us       with every SM at work, at ISSUE of the rate, or of the unit that is busiest
    latency_us     of one program, alone on its SM, times the waves
    bytes_us       at BANDWIDTH
    us             the largest of the three and OVERHEAD
    """

    programs: int
    instructions: float
    issue_us: float
    latency_us: float
    bytes_us: float

    @property
    def us(self) -> float:
        return max(self.issue_us, self.latency_us, self.bytes_us) + 1e6 * OVERHEAD

    def row(self) -> dict[str, Any]:
        """Return its figures, rounded."""
        return {name: round(value, 2) for name, value in (asdict(self) | {"us": self.us}).items()}


def cycles(flow: Flow) -> list[float]:
    """Return the cycles in which a warp that runs alone passes each block, waits included.

    Blocks follow one another as in memory: what a block waits for may have been issued in the one before.
    """
    now, ready, found = 0.0, [0.0] * 6, []
    for block in flow.blocks:
        begin, loading, answered = now, 0, False  # loading: bits of the scoreboards that the block's loads set
        for one in block.instructions:
            now = max([now] + [ready[i] for i in range(6) if one.waits >> i & 1])
            answered = answered or bool(one.waits & loading)
            base = one.opcode.split(".")[0]
            for scoreboard in one.sets:
                if scoreboard != NONE:
                    latency = L1 if base == "LDG" and answered else LATENCY.get(base, OTHER)
                    ready[scoreboard] = max(ready[scoreboard], now + latency)
                    loading |= (base == "LDG") << scoreboard
            now += max(one.stall, 1) + _extra(one)
        found.append(now - begin)
    return found


def _extra(one: Instruction) -> float:
    if one.opcode.startswith("BAR"):
        return BARRIER
    return MATRIX if one.opcode.startswith("WARPGROUP.DEPBAR") else 0.0


@dataclass(frozen=True)
class _Program:
    """One program: instructions of a warp, cycles of its shared units by name, cycles of a warp alone."""

    instructions: float
    units: dict[str, float]
    cycles: float


def predict(
    flow: Flow, alone: Sequence[float], used: Resources, programs: Sequence[tuple[int, Passes]], numbers_bytes: int
) -> Prediction:
    """Return the prediction of a launch.

    alone          cycles(flow)
    programs       counts by program (programs.passes)
    numbers_bytes  that the launch reads and writes
    """
    kinds = [by_kind(block) for block in flow.blocks]
    each = [(count, _program(flow.executions(passes), kinds, alone)) for count, passes in programs]
    total = sum(count for count, _ in each)
    instructions = used.warps * sum(count * one.instructions for count, one in each)
    units = Counter[str]()
    for count, one in each:
        units.update({name: count * used.warps * value for name, value in one.units.items()})
    # SMs with the most programs end last
    busiest = ceil(total / SMS) / total * max([instructions / 4 / ISSUE, *units.values()])
    longest = max(one.cycles for _, one in each)
    mean = sum(count * one.cycles for count, one in each) / total
    latency = max(longest, mean * total / (SMS * used.resident))
    return Prediction(total, instructions, 1e6 * busiest / CLOCK, 1e6 * latency / CLOCK, 1e6 * numbers_bytes / BANDWIDTH)


def _program(executions: Sequence[float], kinds: Sequence[Counter[str]], alone: Sequence[float]) -> _Program:
    counts = Counter[str]()
    for times, kind in zip(executions, kinds, strict=True):
        counts.update({name: times * number for name, number in kind.items()})
    units = {
        unit: sum(costs.get(name, 0.0) * number for name, number in counts.items()) for unit, costs in SHARED_UNITS.items()
    }
    return _Program(sum(counts.values()), units, sum(t * c for t, c in zip(executions, alone, strict=True)))
