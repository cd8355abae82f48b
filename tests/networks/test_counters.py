"""Counts of published cells and of NAS-Bench-201's to the unit, what counts them, and the command that prints them."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdarts.count import main
from fastdarts.networks import STANDARD, NetworkShape, architecture_of, build, count, standard_shape, widest
from fastdarts.networks.counters import multiply_adds
from fastdarts.spaces import CANDIDATES, Architecture, candidates
from fastdarts.spaces.genotype import Genotype
from fastdarts.spaces.published import names

pytestmark = pytest.mark.usefixtures("one_thread")
# parameters with the auxiliary head and multiply-adds, in millions, as comments in its genotypes.py round or cut them
FAIR = {"b": (3.88, 536), "d": (3.84, 532), "e": (3.12, 414), "f": (3.62, 497), "g": (3.375, 453)}
CELLS = [name for name in names() if not name.startswith("FairDARTS")]
OFTEN = ("NASNet", "DARTS_V2", "PC_DARTS_image")  # `make test-fast` counts these
SAME = ("params", "ptflops", "thop_bn2", "thop_bn4", "fvcore", "torch_flop_counter", "bn_elements", "convolutions")
CELL = "[('noise', 0), ('none', 1)]"
NOISE = f"Genotype(normal={CELL}, normal_concat=[2], reduce={CELL}, reduce_concat=[2])"


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> dict[Genotype, dict[str, Any]]:
    table = json.loads((shared_data / "genotypes.json").read_text())
    return {Genotype.from_text(row["text"]): row for row in table.values()}


def test_every_table_cell_has_name(rows: dict[Genotype, dict[str, Any]], shared_data: Path) -> None:
    table = json.loads((shared_data / "genotypes.json").read_text())
    assert {architecture_of(name) for name in CELLS} == set(rows)
    assert all(architecture_of(name) == Genotype.from_text(row["text"]) for name, row in table.items())


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """Cells of a method's further runs are left to the campaign."""
    further = re.search(r"_[1-9]$", name) is not None
    return () if name in OFTEN else (pytest.mark.campaign,) if further else (pytest.mark.slow,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CELLS])
def test_published_counts_are_exact(rows: dict[Genotype, dict[str, Any]], name: str) -> None:
    """36x20 with 10 and 100 classes, 48x14 with 1000, and the narrower ones that were trained."""
    genotype = architecture_of(name)
    for network, row in rows[genotype].items():
        if not isinstance(row, dict):
            continue
        kind, norm = ("imagenet", "without") if network.startswith("imagenet") else ("cifar", "with")
        sizes = {"init_channels": row["C"], "layers": row["layers"], "num_classes": row["classes"]}
        counts = count(genotype, standard_shape(genotype, kind, **sizes))
        wanted = {key: row[key] for key in SAME} | {"macs": row["macs_conv_fc"]}
        wanted |= {"params_auxiliary": row[f"aux_params_{norm}_bn768"]}
        assert wanted == {key: counts[key] for key in wanted}, network
        assert counts["params_with_auxiliary"] == counts["params"] + counts["params_auxiliary"]


@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
@pytest.mark.parametrize("norm", ["with", "without"])
def test_auxiliary_head_with_and_without_second_norm(rows: dict[Genotype, dict[str, Any]], kind: str, norm: str) -> None:
    genotype = architecture_of("DARTS_V2")
    shape = NetworkShape(kind, *((36, 20, 10) if kind == "cifar" else (48, 14, 1000)), True, norm == "with", image_size=224)
    row = rows[genotype]["cifar10" if kind == "cifar" else kind]
    assert count(genotype, shape)["params_auxiliary"] == row[f"aux_params_{norm}_bn768"]


@pytest.mark.parametrize("number", [0, 1, 5000, 9999, 15624])
def test_nas_bench_201_counts_are_exact(shared_data: Path, number: int) -> None:
    with open(shared_data / "nasbench201.csv", encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["index"] == str(number))
    cell = Architecture.from_text(row["arch_str"])
    cifar = count(cell, STANDARD["nasbench201"])
    assert (cifar["params"], cifar["nasbench201"]) == (int(row["params_cifar10"]), int(row["macs_cifar10"]))
    assert cifar["macs"] == cifar["nasbench201"] - 10 and cifar["params_auxiliary"] == 0
    small = standard_shape(cell, num_classes=120, image_size=16)
    assert count(cell, small)["nasbench201"] == int(row["macs_imagenet16"])


@pytest.mark.parametrize(("letter", "published"), FAIR.items())
def test_fairdarts_counts_match_rounded_published_ones(letter: str, published: tuple[float, int]) -> None:
    """Cells of 0 to 2 inputs a node."""
    counts = count(architecture_of(f"FairDARTS_{letter}"), STANDARD["cifar"])
    assert abs(counts["params_with_auxiliary"] / 1e6 - published[0]) < 0.01 and abs(counts["macs"] / 1e6 - published[1]) < 1


@pytest.mark.parametrize(
    ("name", "kind"), [("AmoebaNet", "cifar"), ("NASNet", "imagenet"), ("FairDARTS_g", "cifar"), ("|x|", "nasbench201")]
)
def test_torch_counts_twice_the_multiply_adds(name: str, kind: str) -> None:
    cells = Architecture.from_number(9876) if kind == "nasbench201" else architecture_of(name)
    shape = standard_shape(cells, kind, init_channels=4, layers=3, image_size=32, num_classes=7)
    network = build(cells, shape).eval()
    with FlopCounterMode(display=False) as flops:
        network(torch.zeros(1, 3, 32, 32))
    counts = count(cells, shape)
    assert flops.get_total_flops() == 2 * counts["macs"] == counts["torch_flop_counter"]
    assert sum(p.numel() for p in network.parameters()) == counts["params"]


def test_counting_draws_no_numbers() -> None:
    """A search counts after each epoch: not one of its random numbers may move."""
    before = torch.get_rng_state()
    count(architecture_of(NOISE), NetworkShape("cifar", 6, 4, 3, True, image_size=12))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "limit", "channels"), [("RLNAS_c10", "600M", 46), ("DARTS_V2", "529911552", 48)])
def test_widest_network_within_a_limit(name: str, limit: str, channels: int) -> None:
    genotype = architecture_of(name)
    shape = widest(genotype, STANDARD["imagenet"], multiply_adds(limit))
    assert shape.init_channels == channels and shape.layers == 14
    assert count(genotype, shape)["macs"] <= multiply_adds(limit)
    assert count(genotype, standard_shape(genotype, "imagenet", init_channels=channels + 2))["macs"] > multiply_adds(limit)


@pytest.mark.parametrize(
    ("text", "number"), [("600M", 600_000_000), ("0.6g", 600_000_000), ("6e8", 600_000_000), ("1.5k", 1500)]
)
def test_numbers_of_multiply_adds(text: str, number: int) -> None:
    assert multiply_adds(text) == number


def test_custom_candidates_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layers may compute by functions, which no hook hears."""
    monkeypatch.setitem(CANDIDATES, "mine", candidates.Candidate("mine", "conv"))
    with pytest.raises(ValueError, match="mine is a custom candidate"):
        count(architecture_of(NOISE.replace("'none'", "'mine'")), STANDARD["cifar"])


def test_command_prints_counts(capsys: pytest.CaptureFixture) -> None:
    assert main(["darts-v2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cifar network, 36 channels, 20 cells, 10 classes\n")
    assert {"3,349,342", "476,426", "528,359,040", "547,473,034"} <= set(out.split())
    assert main(["DARTS_V2", "--json", "--network", "imagenet", "--fit_macs", "0.5G"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["network"], found["init_channels"], found["layers"], found["num_classes"]) == ("imagenet", 46, 14, 1000)
    assert found["macs"] == 488_068_832 and set(SAME) < set(found)
    assert main([str(Architecture.from_number(0)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] == "nasbench201"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "the following arguments are required"),
        (["DARTS_V3"], "no published genotype, file or folder 'DARTS_V3': DARTS_V2, DARTS_V1"),
        (["nowhere/genotype.json"], "nowhere/genotype.json: no such file or folder"),
        (["Genotype(normal=1)"], "a genotype has the fields"),
        (["DARTS_V2", "--network", "nasbench201"], "network nasbench201: a genotype is of DARTS' networks"),
        (["DARTS_V2", "--network", "vgg"], "invalid choice: 'vgg'"),
        (["DARTS_V2", "--layers", "2"], "layers = 2: the cifar network needs at least 3"),
        (["DARTS_V2", "--image_size", "30"], "images of 30x30 pixels: the cifar network needs sides that are multiples of 4"),
        (["DARTS_V2", "--network", "imagenet", "--init_channels", "47"], "init_channels = 47: the imagenet stem needs an even"),
        (["DARTS_V2", "--fit_macs", "5"], "5 multiply-adds: this network has more with 2 initial channels"),
        (["DARTS_V2", "--fit_macs", "inf"], "invalid multiply_adds value: 'inf'"),
        (["DARTS_V2", "--fit_macs", "1G", "--init_channels", "8"], "--fit_macs chooses --init_channels"),
    ],
)
def test_wrong_input_is_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    try:
        status = main(argv)
    except SystemExit as end:  # argparse leaves so
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and says in err and err.count("\n") == 1
