"""What names an architecture: text, files, run folders, published names."""

from pathlib import Path

import pytest

from fastdarts.spaces import Architecture, ArchitectureError
from fastdarts.spaces.architecture import architecture_of
from fastdarts.spaces.genotype import Genotype, GenotypeError
from fastdarts.spaces.published import names, published

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"


def test_published_genotypes_have_known_operations() -> None:
    """The well-known ones of each codebase among them."""
    found = {name: architecture_of(name) for name in names()}
    assert found and all(isinstance(cells, Genotype) for cells in found.values())
    well_known = (
        "NASNet AmoebaNet ENASNet SNAS GDAS_V1 MdeNAS DARTS_V1 DARTS_V2 PC_DARTS_cifar PC_DARTS_image PDARTS FairDARTS_a"
    )
    assert set(well_known.split()) <= set(found)
    for codebase, count in {
        "DrNAS": 2,
        "DARTS_minus": 17,
        "SDARTS": 2,
        "DARTS_PT": 8,
        "SGAS": 6,
        "RLNAS": 3,
        "UnNAS": 4,
    }.items():
        assert sum(name.startswith(codebase) for name in found) == count, codebase


@pytest.mark.parametrize("name", ["DARTS_V2", "darts_v2", "DARTS-V2", "Darts V2", "dartsv2", "DARTS", " DARTS_V2\n"])
def test_names_in_any_spelling(name: str) -> None:
    assert published(name) == architecture_of("DARTS_V2")


@pytest.mark.parametrize(
    ("name", "also"), [("P-DARTS", "PDARTS"), ("D-cifar10_s0_0", "DARTS-minus-cifar10-s0-0"), ("SDARTS-ADV", "SD-c10_s5_pgd")]
)
def test_aliases_name_same_cell(name: str, also: str) -> None:
    assert architecture_of(name) == architecture_of(also)


def test_text_files_and_run_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is both a published one and a file or folder here is ambiguous, with a folder before it is not."""
    darts, cell = architecture_of("DARTS_V1"), Architecture.from_text(CELL)
    (tmp_path / "run").mkdir()
    for cells in (darts, cell):
        (tmp_path / "run" / "genotype.json").write_text(cells.to_json(seed=3))
        (tmp_path / "a.txt").write_text(f"epoch 3: {cells}\n")
        (tmp_path / "odd (name).json").write_text(cells.to_json())
        wanted = [str(cells), f"best = {cells}", cells.to_json(), *(tmp_path / n for n in ("run", "a.txt", "odd (name).json"))]
        assert all(architecture_of(str(text)) == cells for text in wanted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").rename("pdarts")
    with pytest.raises(GenotypeError, match=r"pdarts: a published genotype and a file or folder here: write ./pdarts"):
        architecture_of("pdarts")
    assert architecture_of("./pdarts") == cell
    monkeypatch.setenv("HOME", str(tmp_path))
    assert architecture_of("~/a.txt") == cell


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("DARTS_V9", "no published genotype, file or folder 'DARTS_V9': DARTS_V2, DARTS_V1"),
        ("sgas", "'sgas': SGAS_Cri1_CIFAR_1, SGAS_Cri1_CIFAR_2"),
        ("???", "'???': such are NASNet, "),
        ("runs/nothing", "runs/nothing: no such file or folder"),
        ("cell.json", "cell.json: no such file or folder"),
        (".", "no genotype.json in this folder: no search, or one that has not finished an epoch"),
        ("empty.txt", "empty.txt: no genotype in ''"),
        ("|none~0|", "not |op~0|"),
        ("Genotype(3)", "a genotype has the fields"),
    ],
)
def test_unknown_architectures_are_reported_with_one_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises((GenotypeError, ArchitectureError)) as caught:
        architecture_of(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
