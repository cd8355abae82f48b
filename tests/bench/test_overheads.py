"""The overheads bench: every row has a share, the steps that it compares are the same steps, wrong input is one line."""

import json
from pathlib import Path

import pytest
import torch

from bench.overheads import BLOCKS, PARTS, Rounds, Unconditional, main, text
from fastdarts.search import Bilevel
from tests.support.bilevels import batch, differing, everything, make, number

SMALL = ["--image_size", "32", "--batch", "2", "--steps", "2", "--rounds", "2"]
BY_CLOCK = ("NaN guard", *PARTS, "the rest", "stages")


def unconditional(given: Bilevel) -> Unconditional:
    return Unconditional(
        given.supernet,
        given.objective,
        given.relaxation,
        given.weight_optimizer,
        given.arch_optimizer,
        grad_clip=given.grad_clip,
        arch_grad_clip=given.arch_grad_clip,
    )


def test_every_row_has_a_share(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--json", "--record", "--results", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "overheads.jsonl").read_text()) == record
    percent = record["percent"]
    assert list(percent) == ["everything", *BY_CLOCK, "checkpoint", "epoch's end", "guarded", "session"]
    assert all(values["q20"] <= values["median"] <= values["q80"] for values in percent.values())
    assert all(0 < percent[row]["median"] < 100 for row in BY_CLOCK)  # they took time; differences may be noise
    assert record["bare_ms"]["median"] > 0 and record["checkpoint_minutes"] == 10
    assert (record["steps"], record["rounds"], record["epoch_steps"]) == (2, 2, 64_000)
    message = text(record).splitlines()
    assert message[0].startswith("mae-imagenet, batch 2, 32 px") and len(message) == 2 + len(percent)


def test_total_is_sum_of_parts(capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--rounds", "1", "--json"]) == 0
    percent = {row: values["median"] for row, values in json.loads(capsys.readouterr().out)["percent"].items()}
    parts = sum(percent[row] for row in (*BY_CLOCK, "checkpoint", "epoch's end"))
    assert percent["everything"] == pytest.approx(parts, abs=0.01)


def test_bare_steps_match_library_without_guard() -> None:
    ends = []
    for kind in (lambda given: given, unconditional):
        bilevel = kind(make(arch_grad_clip=5.0))
        for step in range(3):
            bilevel(number(step), batch(2 * step), batch(2 * step + 1))
        ends.append(everything(bilevel))
    assert differing(*ends) == []
    images = batch(0)
    bilevel.weights[0].data.fill_(torch.nan)
    bilevel(number(3), images, images)
    assert not any(p.isfinite().all() for p in bilevel.weights)


def test_every_second_round_reverses_order() -> None:
    loader = Rounds(batch(0), 2, 3)
    assert list(loader._plan) == [*BLOCKS[0], *BLOCKS[1], *BLOCKS[0]]
    assert all(sorted(blocks) == ["checkpoint", "epoch", "session"] and blocks[0] == "epoch" for blocks in BLOCKS)


@pytest.mark.parametrize(
    ("wrong", "message"), [(["--image_size", "48"], "--image_size 48"), (["--rounds", "0"], "--rounds: 0")]
)
def test_invalid_input_exits_with_one_line(wrong: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(wrong) == 2
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line
