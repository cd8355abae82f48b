"""The loader bench: every route and stage has a rate, on a folder of tiny images; wrong input is one line."""

import json
from pathlib import Path

import pytest

from bench.loader import main, text
from tests.test_search_imagenet import write_tree

SMALL = ["--image_size", "32", "--batch", "8", "--workers", "0", "--seconds", "0.01", "--rounds", "1", "--steps", "1"]


def test_record_has_rates_of_all_routes_and_stages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_tree(tmp_path / "images")
    (root / "train/class0/0.JPEG").write_bytes(b"")
    assert main(["--data", str(root), *SMALL, "--json", "--record", "--results", str(tmp_path / "results")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == 15 and record["left_out"] == 1 and record["cache_bytes"] == 15 * 3 * 40 * 40
    routes = {"torchvision", "cache"} | (set() if record["missing"] else {"dali"})
    assert set(record["images_per_s"]) == set(record["waiting"]) == routes
    assert 0 <= record["cache_difference"] < 0.2  # small images are kept as they are
    assert all(rate["median"] > 0 for rate in record["images_per_s"].values())
    assert all(0 < step["share"] < 1 and step["images_per_s"] > 0 for step in record["waiting"].values())
    assert len(record["stages_images_per_s"]) == 9 and min(record["stages_images_per_s"].values()) > 0
    assert json.loads((tmp_path / "results/loader.jsonl").read_text()) == record
    lines = text(record).splitlines()
    assert lines[0].startswith("15 images of images (1 left out), 32 px") and len(lines) == 4 + len(routes) + 9


def test_invalid_input_exits_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_tree(tmp_path / "images")
    for argv, message in (
        (["--data", str(tmp_path / "nowhere")], "nowhere"),
        (["--data", str(root), "--batch", "17"], "batch_size is 17"),
        (["--data", str(root), "--batch", "8", "--image_size", "33", "--steps", "1"], "--image_size 33"),
    ):
        assert main([*argv, "--rounds", "1", "--seconds", "0.01"]) == 2
        line = capsys.readouterr().err.strip()
        assert message in line and "\n" not in line
