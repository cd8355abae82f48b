"""Prediction from machine code: parsing, counting, the model by hand, bounds; the gate over the production kernels."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import launches
from bench.sass import __main__ as command

pytest.importorskip("triton", reason="Triton is not installed")

import torch
import triton
import triton.language as tl

from bench.sass import model, programs, report
from bench.sass.control_flow import Flow
from bench.sass.machine_code import NONE, Instruction, parse
from bench.sass.model import Resources
from bench.sass.programs import Passes
from bench.sass.recording import record
from bench.sass.started import Kernel, Started, started

LISTING = """
.text.toy:
	//## File "/elsewhere/kernels/parts.py", line 7 inlined at "/elsewhere/kernels/toy.py", line 20
	//## File "/elsewhere/kernels/toy.py", line 20
        /*0000*/                   LDG.E.U16.CONSTANT R3, desc[UR4][R4.64] ;   /* 0x0000000404037981 */
                                                                               /* 0x000ea2000c1e9500 */
.L_x_0:
	//## File "/elsewhere/kernels/toy.py", line 21
        /*0010*/              @!P2 FFMA R22, R23, R18, R22 ;                   /* 0x0000001217167223 */
                                                                               /* 0x004fca0000000016 */
        /*0020*/               @P0 BRA `(.L_x_0) ;                             /* 0xfffffffc00e80947 */
                                                                               /* 0x000fea000383ffff */
        /*0030*/                   EXIT ;                                      /* 0x000000000000794d */
                                                                               /* 0x000fea0003800000 */
"""
SOURCE = """def kernel(n, flag):
    start = 0
    for i in range(n):
        if flag:
            start += 1
        else:
            start -= 1
    return start
"""


@triton.jit
def inner(p_table, i_row, WIDE: tl.constexpr):
    for _ in range(tl.load(p_table + i_row)):
        if WIDE:
            tl.sum(tl.arange(0, 16), 0)


@triton.jit
def outer(p_x, p_table, m, parts, BLOCK: tl.constexpr):
    part = tl.program_id(0) % parts
    for start in range(part * 64, m, BLOCK):
        if start == part * 64:
            tl.store(p_x + start + tl.arange(0, BLOCK), 0.0)
        inner(p_table, tl.program_id(0) // parts, BLOCK > 8)


def launched(grid: tuple[int, ...], **values: Any) -> Started:
    signature = (("p_x", "*fp32"), ("p_table", "*i64"), ("m", "i32"), ("parts", "i32"), ("BLOCK", "constexpr"))
    return Started(Kernel(outer, signature, (("BLOCK", values["BLOCK"]),), (), ()), grid, values, (3, 5), 0)


def instruction(opcode: str, line: int, target: str | None = None, label: str | None = None, **facts: Any) -> Instruction:
    known = {"predicated": False, "stall": 1, "sets": (NONE, NONE), "waits": 0}
    return Instruction(opcode, target=target, label=label, chain=(("kernel.py", line),), **known | facts)


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A loop around an `if` with an `else`: six blocks and the end."""
    (tmp_path / "kernel.py").write_text(SOURCE)
    code = [
        instruction("MOV", 2),
        instruction("LDG.E.128", 3, label="L0", sets=(0, NONE)),
        instruction("BRA", 4, "L1", predicated=True),
        instruction("FFMA", 5, waits=1),
        instruction("FFMA", 5),
        instruction("BRA", 5, "L2"),
        instruction("FADD", 7, label="L1", stall=4),
        instruction("BRA", 3, "L0", "L2", predicated=True),
        instruction("EXIT", 8),
    ]
    return Flow(code, tmp_path)


def test_listing_is_parsed() -> None:
    """Opcodes, classes, control bits and source lines from the kernel inwards, of a listing by nvdisasm."""
    load, multiply, branch, end = parse(LISTING)
    assert load.chain == (("toy.py", 20), ("parts.py", 7)) and load.kind == "LDG 16" and load.label is None
    assert load.sets == (2, NONE) and load.stall == 1 and load.waits == 0
    assert multiply.kind == "FFMA" and multiply.predicated and multiply.waits == 1 << 2 and multiply.stall == 5
    assert branch.target == multiply.label == ".L_x_0" and branch.predicated and branch.kind == "control"
    assert end.chain == (("toy.py", 21),) and not end.predicated
    with pytest.raises(ValueError, match="TRITON_DISABLE_LINE_INFO"):
        parse("\n".join(line for line in LISTING.splitlines() if "File" not in line))


def test_programs_count_loops_and_branches() -> None:
    """Numbers of the launch and of its table decide; chains lead through the call."""
    line = outer.fn.__code__.co_firstlineno + 3  # of the loop over blocks
    file = Path(__file__).name
    (first, one), (second, other) = programs.passes(launched((2,), m=160, parts=1, BLOCK=16))
    assert (first, second) == (1, 1)
    assert one.loops[((file, line),)] == (1, 1, 10) and one.branches[((file, line + 1),)] == (10, 1)
    within = inner.fn.__code__.co_firstlineno + 2
    key = (file, line + 3), (file, within)
    assert one.loops[key] == (10, 10, 30) and other.loops[key] == (10, 10, 50)
    assert one.branches[(*key[:1], (file, within + 1))] == (30, 30)


def test_programs_of_a_group_count_together() -> None:
    """Of 200 programs in two groups of parts, one of each group runs; a loop over many blocks runs twice."""
    counted = programs.passes(launched((200,), m=64 * 100, parts=100, BLOCK=4))
    assert [count for count, _ in counted] == [100, 100]
    assert max(iterations for _, _, iterations in counted[0][1].loops.values()) == 3 * 1600


def test_launch_is_specialised_as_by_triton() -> None:
    """1 is a constant, multiples of 16 and whole addresses are marked; bytes are the tensors'."""
    x, table = torch.empty(8, dtype=torch.bfloat16), torch.empty(4, dtype=torch.int64)
    one = started(outer, (x, table), {"m": 32, "parts": 1, "BLOCK": 16, "num_warps": 4}, (7,), (3, 5), None)
    assert dict(one.kernel.signature) == {
        "p_x": "*bf16",
        "p_table": "*i64",
        "m": "i32",
        "parts": "constexpr",
        "BLOCK": "constexpr",
    }
    assert one.kernel.aligned == ((0,), (1,), (2,)) and one.kernel.options == (("num_warps", 4),)
    assert one.kernel.constexprs == (("parts", 1), ("BLOCK", 16)) and one.kernel.name == "test_sass.outer"
    assert one.bytes == 16 + 32 and one.grid == (7,) and one.table == (3, 5)
    odd = started(outer, (x[1:], table), {"m": 33, "parts": 2, "BLOCK": 16}, (7,), (), None)
    assert odd.kernel.aligned == ((1,),)


def test_executions_follow_source(flow: Flow) -> None:
    """10 iterations, of which the `if` is true in 4, in any direction of the branch."""
    passes = Passes({(("kernel.py", 4),): (10, 4)}, {(("kernel.py", 3),): (1, 1, 10)})
    assert flow.executions(passes) == pytest.approx([1, 10, 4, 6, 10, 1, 1])
    assert [bool(loop) for loop in flow.innermost] == [False, True, True, True, True, False, False]


def test_unrolled_loop_is_followed_by_its_rest(tmp_path: Path) -> None:
    """Ten iterations: two of four at once, and two."""
    (tmp_path / "kernel.py").write_text(SOURCE)
    code = [instruction("LDG.E", 3, label="L0")] + [instruction("LDG.E", 3)] * 3
    code += [instruction("BRA", 3, "L0", predicated=True), instruction("LDG.E", 3, label="L1")]
    code += [instruction("BRA", 3, "L1", predicated=True), instruction("EXIT", 8)]
    flow = Flow(code, tmp_path)
    assert flow.executions(Passes({}, {(("kernel.py", 3),): (1, 1, 10)})) == pytest.approx([2, 2, 1, 1])
    assert not flow.unexplained
    flow.executions(Passes({}, {}))
    assert flow.unexplained == {(("kernel.py", 3),)}


def test_prediction_by_hand(flow: Flow) -> None:
    """Issue slots or the memory unit, one program's cycles over the waves, bytes over bandwidth."""
    passes = Passes({(("kernel.py", 4),): (10, 4)}, {(("kernel.py", 3),): (1, 1, 10)})
    alone = model.cycles(flow)
    # the load is awaited by the first multiply-add: issued one cycle after it, its answer comes after 407
    assert alone == [1, 2, 405 + 1 + 1 + 1, 4, 1, 1, 0]
    used = Resources(registers=100, warps=4, shared_bytes=0, spill_bytes=0)
    assert used.resident == 4  # 65536 / (104 * 128)
    found = model.predict(flow, alone, used, [(132 * 8, passes)], 3_655_000)
    warp = 1 + 10 * 2 + 4 * 3 + 6 * 1 + 10 * 1 + 1
    assert found.instructions == pytest.approx(132 * 8 * 4 * warp)
    loads = 4 * 10 * 4  # of a program, in cycles: 4 warps, 10 of 512 bytes each; more than 4 * warp / 4 / ISSUE
    assert found.issue_us == pytest.approx(1e6 * 8 * loads / model.CLOCK)
    assert loads > warp / model.ISSUE > 0
    cycles = 1 + 10 * 2 + 4 * 408 + 6 * 4 + 10 + 1
    assert found.latency_us == pytest.approx(1e6 * 2 * cycles / model.CLOCK)
    assert found.bytes_us == pytest.approx(1.0)
    assert found.us == pytest.approx(max(found.issue_us, found.latency_us) + 1.3)


def test_worse_figures_are_named() -> None:
    rows = [{"workload": "cifar", "kernel": "node", "us": 10.0, "narrow_loads": 3, "barriers": 0}]
    found = {"kernels": [*rows, {"workload": "cifar", "kernel": "torch", "us": 5.0}]}
    bounds = report.bounds_of(found)
    assert report.worse(found, bounds) == [] and report.worse(found, {}) == []
    rows[0] |= {"us": 12.0, "narrow_loads": 4}
    said = report.worse({"kernels": rows}, bounds)
    assert said == [
        "cifar: node: us 12 is above its bound 10",
        "cifar: node: narrow_loads 4 is above its bound 3",
    ]
    rows.append({"workload": "cifar", "kernel": "new", "us": 9.0})
    assert "the step's 0.02 ms are above their bound 0.01 ms" in report.worse({"kernels": rows}, bounds)[-1]


def test_failures_and_spills_are_named() -> None:
    variants = [{"kernel": "a", "variant": "C=1", "error": "no"}, {"kernel": "b", "variant": "", "spill_bytes": 8}]
    variants.append({"kernel": "c", "variant": "", "spill_bytes": 0})
    variants.append({"kernel": "d", "variant": "", "spill_bytes": 0, "unexplained": ["x.py:3"]})
    found = {"triton": "3.6.0", "variants": variants}
    unknown = "Triton 3.6.0: d (): iterations unknown of the loop at x.py:3"
    assert report.failures(found) == ["Triton 3.6.0: a (C=1): no", unknown]
    assert report.spills(found) == ["Triton 3.6.0: b (): spills 8 bytes a thread"]


def test_command_prints_table_and_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch belongs to a network; figures worse than their bounds are status 1."""
    with pytest.raises(SystemExit):
        command.main(["--batch", "3"])
    row = {"workload": "cifar", "kernel": "node", "launches": 2, "programs": [1, 2], "gb": 0.5, "us": 3000.0}
    figures = {"cifar_step_ms": 3.0, "cifar_step_launches": 2, "cifar_step_gb": 0.5, "cifar_images_per_s": 9}
    made = figures | {"triton": "0.0", "kernels": [row], "launches": [], "variants": []}
    monkeypatch.setattr(report, "report", lambda workloads: made)
    monkeypatch.setattr(report, "read_bounds", lambda: {"0.0": {"cifar": {"node": {"us": 2000.0}}}})
    assert command.main([]) == 1
    out, err = capsys.readouterr()
    assert "predicted from machine code" in out and "node" in out and "us 3000 is above its bound 2000" in err
    assert command.main(["--json", "--unbounded"]) == 0
    assert json.loads(capsys.readouterr().out)["cifar_step_ms"] == 3.0


@pytest.mark.campaign
def test_recording_has_every_launch_of_the_plans() -> None:
    """Forward of CIFAR's cells, twice, with the grids of bench.launches."""
    workload = report.workload_of("cifar")
    planned = Counter()
    for one in launches.step(launches.calls(workload)):
        if one.part.startswith("forward"):
            planned[one.launch.kernel, one.launch.programs] += 1
    found = Counter((one.kernel.name.partition(".")[2], *one.grid) for one in record(workload).started if one.table)
    assert planned and {key: found[key] for key in planned} == planned


@pytest.mark.campaign
@pytest.mark.parametrize("step", ["cifar", "mae-imagenet", "darts-cifar", "darts-imagenet"])
def test_production_kernels_keep_their_bounds(step: str) -> None:
    """None spills more, loads narrower, meets at more barriers, needs more instructions or longer than bounds.json says."""
    bounds = report.read_bounds().get(triton.__version__, {})
    assert step in bounds, f"no bounds for Triton {triton.__version__}: python -m bench.sass --bounds"
    found = report.report({step: report.workload_of(step)})
    assert report.failures(found) + report.worse(found, bounds) == []
