"""Whole searches of the generated sample, seed by seed: what a search finds and how much it varies. Leaves records."""

import json

import pytest

from bench.records import RESULTS, append, tagged
from fastdarts.search_imagenet import main

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["", "--unrolled", "--channel_sampling random", "--objective supervised"])
def test_sample_search_beats_baseline(variant, seed, tmp_path):
    """Validation masked L1 at least 20 % below that of the mean visible colour; supervised, better than chance."""
    run = tmp_path / "run"
    assert main([*variant.split(), "--seed", str(seed), "--save", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    seconds = sum(json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines())
    figures = {name: last[name] for name in ("epoch", "train_loss", "alpha_loss", "valid", "cells", "genotype")}
    figures = {"campaign": f"sample {variant}".strip(), "seed": seed, "seconds": round(seconds, 1)} | figures
    append(RESULTS / "campaign.jsonl", tagged(figures))
    if "supervised" in variant:
        assert last["valid"]["top1"] > 2 / 10  # ten classes
    else:
        assert last["valid"]["loss"] < 0.8 * last["valid"]["baseline"]
