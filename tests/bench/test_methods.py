"""bench.methods: setup of every row, the record of one, invalid input."""

import json
from pathlib import Path

import pytest
import torch

from bench.method_rows import chosen, rows
from bench.methods import MethodsSettings, _both, main, noted
from bench.records import RESULTS, read, summary
from fastdarts import native
from fastdarts.objectives.table import OBJECTIVES
from fastdarts.ops.patch_mask import patch_mask

SIZES = ["--batch", "2", "--image_size", "16", "--init_channels", "8", "--layers", "3", "--stage_cells", "1"]
TINY = [*SIZES, "--rounds", "2", "--warm_up", "0", "--device", "cpu", "--threads", "1"]
FUSED = "definition" if native.reason() else "cpu"


def measured(only: str, folder: Path, *more: str) -> list[dict]:
    assert main([*TINY, "--only", only, "--record", "--results", str(folder), *more]) == 0
    return [json.loads(line) for line in (folder / "methods.jsonl").read_text().splitlines()]


def test_rows_cover_all_methods_objectives_and_spaces() -> None:
    names = {group: [row.name for row in rows() if row.group == group] for group in ("methods", "objectives", "spaces")}
    stages = [f"p-darts stage {i}" for i in (1, 2, 3)] + [f"p-darts stage {i} no dropout" for i in (2, 3)]
    assert names["methods"] == ["darts-2nd", "pc-darts", *stages]
    assert names["objectives"] == list(OBJECTIVES)
    assert names["spaces"] == [f"{s} {o}" for s in ("s1", "s2", "s3", "s4", "nasbench201") for o in ("mae", "joint")]
    assert sum(map(len, names.values())) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_rows_have_published_sizes(row) -> None:
    """What would be measured; nothing is computed."""
    own, plain = _both(row, MethodsSettings(device="cpu"))
    assert (plain.settings.method, plain.settings.objective, plain.settings.unrolled) == ("darts-1st", "supervised", False)
    assert own.space is plain.space and (own.stage.layers, plain.stage.dropout) == (plain.stage.layers, 0)
    assert own.settings.init_channels == 16 and own.settings.space == plain.settings.space
    if row.name.startswith("p-darts"):
        number = int(row.name.split()[2])
        layers, candidates, dropout = {1: (5, 8, 0), 2: (11, 5, 0.4), 3: (17, 3, 0.7)}[number]
        assert own.stage.layers == layers and own.stage.dropout == (0 if "no dropout" in row.name else dropout)
        assert {len(names) for names in own.space.normal} == {candidates}
        assert all("skip_connect" in names for names in own.space.normal)
    else:
        assert own.stage.layers == 8 and own.stage.dropout == 0
    if row.group == "spaces":
        assert own.settings.space == row.name.split()[0]
    assert (own.settings.step_order == "weights-first") == (own.settings.space == "nasbench201")
    assert own.settings.partial_channels == (4 if row.name == "pc-darts" else 1)


def test_record_has_step_cost_and_backends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    threads = torch.get_num_threads()
    unrolled, masked = measured("darts-2nd, mae", tmp_path)
    assert torch.get_num_threads() == threads
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("darts-2nd ") and second.startswith("mae ") and f"mixed_cell {FUSED} 6" in second
    for record in (unrolled, masked):
        assert record["ratio"] == pytest.approx(record["own_ms"]["median"] / record["plain_ms"]["median"], abs=1e-3)
        spread = record["ratio_by_round"]
        assert 0 < spread["q20"] <= spread["median"] <= spread["q80"]
        assert (record["batch"], record["cells"], record["candidates"], record["threads"]) == (2, 3, 8, 1)
        assert record["beside"] == {} and record["own_step"].startswith("uncaptured: ")
        assert record["commit"] and record["machine"] and record["versions"]["torch"] and "ratio" in summary(record)
        assert record["plain_backends"]["mixed_cell"] == {FUSED: 6}  # 3 cells, forward for alpha and for the weights
    # the second order also passes forward at w, at w + Rv and at w - Rv
    assert unrolled["backends"]["mixed_cell"] == {FUSED: 15}
    assert masked["backends"]["mixed_cell"] == {FUSED: 6} and masked["backends"]["patch_mask"] == {FUSED: 2}
    assert "patch_mask" not in masked["plain_backends"]


def test_record_counts_eager_candidates(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (noise,) = measured("s4 mae", tmp_path)
    assert noise["beside"] == noise["plain_beside"] == {"Noise": 3 * 14}
    assert "42 Noise eager" in capsys.readouterr().out


def test_only_p_darts_drops_skips_of_stride_1(tmp_path: Path) -> None:
    dropped, plain = measured("p-darts stage 2, p-darts stage 2 no dropout", tmp_path)
    # 9 cells of 14 edges; in each of the 2 that reduce, 8 edges leave the inputs and stride
    assert dropped["beside"] == {"SkipDropout": 9 * 14 - 2 * 8} and dropped["plain_beside"] == plain["beside"] == {}
    assert (dropped["dropout"], plain["dropout"], dropped["candidates"], dropped["cells"]) == (0.4, 0, 5, 9)


def test_calls_are_counted_only_inside_context() -> None:
    images, number, flip = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.zeros(1) > 0
    how = {"seed": 0, "stream": 0, "patch_size": 2, "num_masked": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def mask(name: str) -> None:
        patch_mask(images, number, number, flip, torch.zeros(3), **how, backend=name)

    with noted() as calls:
        mask("definition")
        mask("auto")
    mask("definition")
    assert calls["patch_mask"].total() == 2 and calls["patch_mask"]["definition"] == (2 if FUSED == "definition" else 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--only", "mea"], "--only: there is no 'mea'; there are methods, objectives, spaces, darts-2nd"),
        (["--rounds", "0"], "--rounds: 0"),
        (["--image_size", "30"], "--image_size 30"),
        (["--init_channels", "6"], "partial_channels = 4"),
        (["--backend", "magic"], "--backend: "),
    ],
)
def test_invalid_input_exits_with_one_line_before_first_step(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(wrong) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("python -m bench.methods: error: ") and message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_exits_with_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rows_follow_table_order() -> None:
    assert [row.name for row in chosen("s1 mae, methods")][:2] == ["darts-2nd", "pc-darts"]
    assert chosen(None) == rows()


@pytest.mark.skipif(not (RESULTS / "methods.jsonl").is_file(), reason="no record has been made yet")
def test_committed_records_are_complete_without_fallback() -> None:
    records = read(RESULTS / "methods.jsonl")
    assert {record["row"] for record in records} == {row.name for row in rows()}
    for record in records:
        assert record["ratio"] == pytest.approx(record["own_ms"]["median"] / record["plain_ms"]["median"], abs=1e-3)
        served = [name for side in ("backends", "plain_backends") for by in record[side].values() for name in by]
        assert served and "definition" not in served
        assert record["commit"] and "+changes" not in record["commit"]
