"""The memory planner: what it counts, against what steps really take; what fits; memory that gives out."""

import gc
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory import ALLOWED, cases, compare, predicted
from bench.workload import Workload
from fastdarts.kernels.mixed_cell_launches import Call, Needs
from fastdarts.kernels.mixed_cell_plan import MixedCellPlan
from fastdarts.objectives import Classification, MaskedReconstruction
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.runs.memory_search import search_bytes
from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.steps import NoMemory, free_bytes, largest_batch, memory_errors_explained, meta_batch
from fastdarts.steps.glibc_heap import MAPPED, PADDING, WALLED, Heap
from fastdarts.steps.memory_counter import HEADER, Counted, Workspace
from fastdarts.supernet import Supernet
from fastdarts.supernet.candidates import graph_of
from tests.support.backends import BACKENDS, needs_native


def parts(backend, masked=True):
    whole = "definition" if backend == "definition" else "auto"
    with torch.device("meta"):
        supernet = Supernet(S0, C=8, layers=3, stem="imagenet", partial_channels=2, backend=backend)
        objective = (
            MaskedReconstruction(supernet.tap_channels, backend=whole) if masked else Classification(supernet, num_classes=3)
        )
    return supernet, objective, SoftmaxRelaxation(S0, edge_normalization=True, device="meta")


def of(n, backend="definition", size=64, device="cpu", **how):
    return search_bytes(*parts(backend), meta_batch(n, size), device, **how)


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(Workload("pc-cifar", 4, 32, 4), marks=needs_native, id="fused"),
        pytest.param(Workload("pc-imagenet", 4, 224, 2, unrolled=True), marks=needs_native, id="fused, second order"),
        pytest.param(Workload("pc-cifar", 4, 32, 4, backend="definition"), id="definition"),
        pytest.param(Workload("mae-imagenet", 4, 224, 4, backend="definition"), id="definition, ImageNet's stem"),
    ],
)
def test_prediction_matches_measurement(workload):
    """Measured in a process of its own; test_every_case_is_predicted has larger ones."""
    record = compare(workload, calls=2)
    assert abs(record["ratio"] - 1) < ALLOWED, record


@pytest.mark.campaign
@pytest.mark.parametrize("workload", list(cases("all", "cpu")), ids=str)
def test_every_case_is_predicted(workload):
    if predicted(workload) > 0.5 * free_bytes("cpu"):
        pytest.skip("this machine's memory is too small for it")
    record = compare(workload)
    assert abs(record["ratio"] - 1) < ALLOWED, record


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["auto", "definition"])
def test_gpu_allocator_overhead_is_bounded(backend, dtype):
    """Workspaces of cuDNN and small sums of the fused kernels come on top; the scratch of the cells' backward is predicted."""
    record = compare(Workload("pc-cifar", 64, 32, 4, dtype, "cuda", backend))
    assert 1 - 2 * ALLOWED < record["ratio"] < 1 + ALLOWED, record


@pytest.mark.parametrize("backend", BACKENDS)
def test_prediction_allocates_nothing_and_keeps_modules(backend):
    """A batch of terabytes is only counted."""
    given = parts(backend)
    sizes = [search_bytes(*given, meta_batch(n, 224), "cpu") for n in (1024, 2048, 1024)]
    assert sizes[1] > 5e9 and abs(sizes[1] / sizes[0] - 2) < 0.05
    assert sizes[0] == sizes[2]
    assert all(type(p) is torch.nn.Parameter and p.is_meta for m in given[:2] for p in m.parameters())
    assert all(a.is_meta and a.requires_grad and a.grad is None for a in given[2].parameters())


@needs_native
def test_fused_cells_need_less_memory():
    assert of(64, "auto", 224) < of(64, "definition", 224) / 2


def test_unusable_backend_is_rejected():
    with pytest.raises(BackendUnavailable, match="supports tensors on the CPU"):
        of(4, "cpu", device="cuda")


def test_second_order_hessian_and_prefetch_need_more():
    plain = of(16)
    assert of(16, unrolled=True) > plain
    assert of(16, hessian=True) >= plain
    batch = sum(t.numel() * t.element_size() for t in meta_batch(16, 64))
    assert of(16, prefetched=4) - plain == pytest.approx(4 * batch, rel=0.25)  # in the heap, between gaps


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_needs_about_half(backend):
    """bfloat16 is no CPU's: counted as the definition, which autocast reaches through any device."""
    if backend != "definition":
        with pytest.raises(BackendUnavailable):
            of(16, "cpu", amp="bf16") if backend == "cpu" else of(16, backend, device="cuda", amp="bf16")
        return
    assert 0.4 < of(256, amp="bf16") / of(256) < 0.75


def test_evaluation_needs_less_than_step():
    supernet, objective, relaxation = parts("definition")
    supernet.eval()
    with Counted(host=True) as counted, torch.no_grad():
        objective.evaluate(supernet, relaxation.weights(), meta_batch(16, 64))
    assert 0 < counted.peak < of(16) / 2


def test_tensors_are_counted_while_alive():
    with Counted(host=False) as counted, torch.device("meta"):
        a = torch.empty(1000)
        b = a + 1
        view = b.view(10, 100)
        del b
        assert counted.live == 8000
        del view
        gc.collect()
        assert (counted.live, counted.peak) == (4000, 8000)
        again, other = a + 1, a.double()
    assert (again.shape, other.dtype, counted.live) == (a.shape, torch.float64, 16000)


def test_operator_results_are_exact():
    with Counted(host=False), torch.device("meta"):
        x = torch.empty(4, 6)
        for _ in range(2):
            assert (x + 1).dtype == (x * 1.5).dtype == torch.float32
            whole = torch.ones(3, dtype=torch.int64)
            assert (whole + 1).dtype == torch.int64 and (whole + 1.0).dtype == torch.float32
            assert (whole + True).dtype == torch.int64
            assert x.t().contiguous().stride() == (4, 1) and (x.t() + 1).stride() == (1, 6)
            assert [tuple(t.shape) for t in torch.ops.aten.max.dim(x, 1)] == [(4,), (4,)]


def test_workspace_keeps_freed_blocks():
    workspace = Workspace()
    a, grown = workspace.take(100_000)
    assert grown == 100_000 + HEADER
    workspace.give(a)
    b, grown = workspace.take(99_000)  # of the same block
    assert grown == 0
    c, grown = workspace.take(99_000)  # that one is taken
    assert grown == 99_000 + HEADER
    workspace.give(b)
    workspace.give(c)
    assert workspace.take(20_000)[1] == 20_000 + HEADER  # no block of more than twice its size


def test_heap_hole_needs_room_for_header():
    heap = Heap()
    a, b, c = (heap.take(1000) for _ in range(3))  # 1008 with headers
    assert [a.start, b.start, c.start, heap.taken] == [0, 1008, 2016, 3024]
    heap.give(a)
    assert heap.take(1000).start == 3024
    assert heap.take(1000 - PADDING).start == 0
    heap.give(b)  # merges with the rest of the hole before it
    assert heap.take(1000).start == 1008 - PADDING
    heap.give(c)
    assert heap.taken == 4 * 1008  # it precedes a live one
    assert heap.take(MAPPED).start == -1 and heap.taken == 4 * 1008 + MAPPED


def test_heap_top_is_returned():
    heap = Heap()
    blocks = [heap.take(size) for size in (100, 2000, 30_000, MAPPED)]
    for block in (blocks[i] for i in (1, 3, 0, 2)):
        heap.give(block)
    assert heap.taken == 0


def test_walls_keep_holes_from_merging():
    def grown(walled):
        heap = Heap()
        blocks = [heap.take(1000, walled) for _ in range(2 * WALLED)]
        heap.take(8)
        for block in blocks:
            heap.give(block)
        before = heap.taken
        again = heap.take(WALLED * 1008)
        return heap.taken - before, again, heap

    assert grown(False)[0] == 0
    taken, again, heap = grown(True)
    assert taken > WALLED * 1008
    heap.give(again)
    before = heap.taken
    for wall in heap.walls():
        heap.give(wall)
    assert heap.walls() == []
    assert heap.take(WALLED * 1008).start == 0 and heap.taken == before


def test_walls_live_as_long_as_graph():
    with Counted(host=True) as counted, torch.device("meta"):
        x = torch.empty(1000, requires_grad=True)
        counted.pass_begins()
        y = x
        for _ in range(WALLED):
            y = y.exp()
        loss = y.sum()
        counted.pass_ends(loss)
        del y
        kept = counted.live
        counted.pass_begins()  # another forward: not its walls
        assert counted.live == kept
        del loss
        gc.collect()
        assert counted.live == pytest.approx(4000, abs=64) and kept > 4 * 4000


@pytest.mark.parametrize(("each", "fixed"), [(1.0, 0), (3.7, 100), (0.01, 5)])
@pytest.mark.parametrize("space", [50, 107, 1000, 4321])
def test_largest_batch_that_fits(each, fixed, space):
    def peak(n):
        assert 0 < n <= 960 and n % 8 == 0
        tried.append(n)
        return fixed + each * n + each * (n // 64)

    tried = []
    found = largest_batch(peak, space, 963)
    fitting = [n for n in range(8, 964, 8) if fixed + each * n + each * (n // 64) <= space]
    assert found == (max(fitting) if fitting else 0)
    assert len(tried) <= 12


def test_smaller_split_limits_batch():
    assert largest_batch(lambda n: n, 10**9, 31) == 24
    assert largest_batch(lambda n: n, 10**9, 7) == 0
    assert largest_batch(lambda n: n, 10**9, 31, multiple=6) == 30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_is_explained(error):
    with (
        pytest.raises(NoMemory, match=r"out of memory \(.+\); take a smaller one") as raised,
        memory_errors_explained(lambda: "take a smaller one"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), memory_errors_explained(lambda: "no"):
        raise RuntimeError("shapes differ")


def test_free_memory_respects_address_space_limit():
    """In a process of its own, whose limit cannot be lifted again."""
    code = (
        "import resource, torch; from fastdarts.steps import free_bytes\n"
        "before = free_bytes('cpu')\n"
        "taken = 1024 * int(next(x for x in open('/proc/self/status') if x.startswith('VmSize')).split()[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28,) * 2)\n"
        "print(before, free_bytes('cpu'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, re.findall(r"\d+", out))
    assert 2**27 < after <= 2**28 < before


def test_gpu_backward_workspace_is_predicted() -> None:
    """Its blocks for gradients of nodes and convolutions, at the peak alone; tensors are fake, there is no GPU."""
    graph = graph_of(S0, "normal")
    with FakeTensorMode(), torch.device("cuda"):
        inputs = [torch.empty(4, 16, 8, 8).to(memory_format=torch.channels_last) for _ in range(2)]
        ops, weights = torch.empty(14, 8), torch.empty(graph.size(16))
        how = graph.encode(), 1, 1e-5
        out, statistics, saved = torch.ops.fastdarts.mixed_cell(inputs, ops, None, weights, None, None, None, None, *how, 0)
        with Counted(host=False) as counted:
            needs = True, True, True, True
            given = torch.ops.fastdarts.mixed_cell_backward(
                out, inputs, ops, None, weights, None, statistics, saved, None, *how, *needs, 0
            )
    plan = MixedCellPlan(Call(graph, (4, 16, 8, 8), 1, False, True, False, False), Needs(True, True, True))
    kept = sum(t.untyped_storage().nbytes() for t in (*given[0], *given[1:]))
    assert counted.live == kept
    assert counted.peak == kept + 4 * plan.work and plan.work > 14 * 8 * inputs[0].numel()
