"""Predict whole steps from machine code: figures by launch, kernel and step, and what is worse than its bound."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton

from bench.network import NETWORKS, NetworkWorkload
from bench.sass import model
from bench.sass.compiled import Compiled, Predictor
from bench.sass.recording import record
from bench.sass.started import Kernel, Started
from bench.workload import SUPERNETS, Dtype, Workload

BOUNDS = Path(__file__).with_name("bounds.json")
BATCHES = {"cifar": 64, "mae-imagenet": 1024, "darts-cifar": 96, "darts-imagenet": 256, "nasnet-cifar": 96}
SLACK = 1.005  # a bound's last digits
FAULTS = ("narrow_loads", "barriers", "issues_a_fma", "spill_bytes")
ASSUMED = ("SMS", "CLOCK", "ISSUE", "BANDWIDTH", "OVERHEAD", "LATENCY", "L1", "OTHER", "BARRIER", "MATRIX")
Report = dict[str, Any]


def workload_of(name: str, batch: int | None = None, dtype: Dtype = "bfloat16") -> Workload | NetworkWorkload:
    """Return the step that is predicted under a name, at its usual batch unless another is given."""
    batch = batch or BATCHES[name]
    if name in NETWORKS:
        return NetworkWorkload(name, batch, NETWORKS[name].image_size, dtype=dtype)
    preset = SUPERNETS[name]
    return Workload(name, batch, preset.image_size, preset.partial_channels, dtype)


def report(workloads: Mapping[str, Workload | NetworkWorkload]) -> Report:
    """Return the predictions for the steps: figures by step, and rows of `kernels`, `launches` and `variants`.

    A launch's row counts how often it occurs; a kernel's has the sums over its launches and the largest of its variants'
    faults (compiled.Compiled.faults). Variants are what was compiled, `error` in those that do not compile.
    """
    predictor, figures = Predictor(), {}
    rows: dict[str, list[dict[str, Any]]] = {"kernels": [], "launches": []}
    for name, workload in workloads.items():
        recorded = record(workload)
        launches = _launches(name, recorded.started, predictor)
        rows["launches"] += launches
        kernels = [*_kernels(name, launches), _torch(name, recorded.own)]
        rows["kernels"] += kernels
        figures |= _figures(name.replace("-", "_"), kernels, workload.images)
    variants = [_variant(kernel, code) for kernel, code in predictor.kernels.items()]
    assumed = {name.lower(): getattr(model, name) for name in ASSUMED}
    return figures | {"triton": triton.__version__, "assumed": assumed} | rows | {"variants": variants}


def _figures(name: str, kernels: list[dict[str, Any]], images: int) -> dict[str, float]:
    seconds, gb = (sum(row[key] for row in kernels) for key in ("us", "gb"))
    figures = {f"{name}_step_ms": round(seconds / 1e3, 2), f"{name}_step_launches": sum(row["launches"] for row in kernels)}
    return figures | {f"{name}_step_gb": round(gb, 2), f"{name}_images_per_s": round(1e6 * images / seconds)}


def _launches(name: str, all_started: list[Started], predictor: Predictor) -> list[dict[str, Any]]:
    """Return a row for each distinct launch."""
    rows: dict[tuple, dict[str, Any]] = {}
    for one in all_started:
        prediction = predictor.predict(one)
        code = predictor.kernel(one.kernel)
        if prediction is None or isinstance(code, Exception):
            continue
        key = one.kernel, prediction, one.bytes
        if key not in rows:
            facts = {"workload": name, "kernel": one.kernel.name, "variant": variant(one.kernel), "launches": 0}
            used = {"registers": code.used.registers, "shared_bytes": code.used.shared_bytes, "resident": code.used.resident}
            rows[key] = facts | {"gb": one.bytes / 1e9} | prediction.row() | used | code.faults()
        rows[key]["launches"] += 1
    return list(rows.values())


def _kernels(name: str, launches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each kernel, the slowest first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in launches:
        groups.setdefault(row["kernel"], []).append(row)

    def total(rows: list[dict[str, Any]], key: str) -> float:
        return round(sum(row["launches"] * row[key] for row in rows), 3)

    for kernel, rows in sorted(groups.items(), key=lambda item: -total(item[1], "us")):
        programs = [row["programs"] for row in rows]
        found = {"workload": name, "kernel": kernel, "launches": sum(row["launches"] for row in rows)}
        found |= {
            "programs": [min(programs), max(programs)],
            "gb": total(rows, "gb"),
            "instructions": total(rows, "instructions"),
        }
        found |= {key: total(rows, key) for key in ("issue_us", "latency_us", "bytes_us", "us")}
        found |= {"resident": min(row["resident"] for row in rows)}
        yield found | {key: max(row[key] for row in rows) for key in ("registers", "shared_bytes", *FAULTS)}


def _torch(name: str, own: list[Any]) -> dict[str, Any]:
    """Return the row of torch's own kernels: their bytes, and the time between launches."""
    launches, moved = sum(one.launches for one in own), sum(one.bytes for one in own)
    us = 1e6 * (launches * model.OVERHEAD + moved / model.BANDWIDTH)
    return {"workload": name, "kernel": "torch", "launches": launches, "gb": round(moved / 1e9, 3), "us": round(us, 2)}


def variant(kernel: Kernel) -> str:
    """Return what distinguishes a kernel's specialisations: constants, and the types of its tensors."""
    constants = " ".join(f"{name}={value}" for name, value in kernel.constexprs)
    types = ",".join(dict.fromkeys(kind for _, kind in kernel.signature if isinstance(kind, str) and kind[0] == "*"))
    return f"{constants} {types}".strip()


def _variant(kernel: Kernel, code: Compiled | Exception) -> dict[str, Any]:
    facts: dict[str, Any] = {"kernel": kernel.name, "variant": variant(kernel)}
    if isinstance(code, Exception):
        return facts | {"error": f"{type(code).__name__}: {code}".splitlines()[0]}
    facts |= {"registers": code.used.registers, "shared_bytes": code.used.shared_bytes}
    lines = sorted(f"{file}:{line}" for chain in code.flow.unexplained for file, line in chain[-1:])
    return facts | ({"unexplained": lines} if lines else {}) | code.faults()


def failures(found: Report) -> list[str]:
    """Return a sentence for each kernel that does not compile or has a loop that is not understood."""
    said = []
    for row in found["variants"]:
        whys = [row["error"]] if "error" in row else []
        whys += [f"iterations unknown of the loop at {line}" for line in row.get("unexplained", ())]
        said += [f"{_name(found, row)}: {why}" for why in whys]
    return said


def spills(found: Report) -> list[str]:
    """Return a sentence for each kernel that spills; bounds say whether it may."""
    spilling = [row for row in found["variants"] if row.get("spill_bytes")]
    return [f"{_name(found, row)}: spills {row['spill_bytes']} bytes a thread" for row in spilling]


def _name(found: Report, row: dict[str, Any]) -> str:
    return f"Triton {found['triton']}: {row['kernel']} ({row['variant']})"


def bounds_of(found: Report) -> dict[str, dict[str, dict[str, float]]]:
    """Return the bounds that a report just meets: by step and kernel, `us` and the faults."""
    bounds: dict[str, dict[str, dict[str, float]]] = {}
    for row in found["kernels"]:
        bounds.setdefault(row["workload"], {})[row["kernel"]] = {key: row[key] for key in ("us", *FAULTS) if key in row}
    return bounds


def worse(found: Report, bounds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return a sentence for each figure that is worse than its bound; a new kernel is bounded by its step's total."""
    said = []
    for step, kernels in bounds_of(found).items():
        if step not in bounds:
            continue
        for kernel, figures in kernels.items():
            limits = bounds[step].get(kernel, {})
            for name, value in figures.items():
                if name in limits and value > SLACK * limits[name]:
                    said.append(f"{step}: {kernel}: {name} {value:g} is above its bound {limits[name]:g}")
        totals = [sum(figures["us"] for figures in each.values()) for each in (kernels, bounds[step])]
        if totals[0] > SLACK * totals[1]:
            said.append(f"{step}: the step's {totals[0] / 1e3:.2f} ms are above their bound {totals[1] / 1e3:.2f} ms")
    return said


def read_bounds() -> dict[str, Any]:
    """Return bounds by Triton's version."""
    return json.loads(BOUNDS.read_text(encoding="utf-8")) if BOUNDS.is_file() else {}


def write_bounds(found: Report) -> None:
    """Set the bounds of the report's steps for its Triton to what it has."""
    bounds = read_bounds()
    bounds[found["triton"]] = bounds.get(found["triton"], {}) | bounds_of(found)
    BOUNDS.write_text(json.dumps(bounds, indent=1) + "\n", encoding="utf-8")
