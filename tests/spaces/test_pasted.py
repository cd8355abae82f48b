"""Architectures in what people paste: the text of other codebases, their logs and files; nothing of it is executed."""

import os

import pytest

from fastdarts.spaces import CANDIDATES, Architecture, ArchitectureError
from fastdarts.spaces.candidates import Candidate
from fastdarts.spaces.genotype import Genotype, GenotypeError
from fastdarts.spaces.pasted import read_pasted

NORMAL = "('sep_conv_3x3', 0), ('sep_conv_3x3', 1)"
REDUCE = "('max_pool_3x3', 0), ('skip_connect', 1)"
TEXT = f"Genotype(normal=[{NORMAL}], normal_concat=range(2, 3), reduce=[{REDUCE}], reduce_concat=range(2, 3))"
NESTED = TEXT.replace("=[(", "=[[(").replace(")],", ")]],")
DICT = f"{{'normal': [({NORMAL})], 'normal_concat': [2], 'reduce': [({REDUCE})], 'reduce_concat': [2]}}"
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"DARTS_V2 = {TEXT}",
        f"genotype = {TEXT}",
        f"05/11 10:33:21 AM genotype = {TEXT}\n",
        f"2026-01-31 12:00:00 [INFO] epoch 3 (of 50): {TEXT}; valid_acc 71.2 (top 1)",
        f"genotypes.{TEXT}",
        f"'{TEXT.replace(chr(39), chr(34))}'",
        TEXT.replace(", reduce=", ",\n  reduce=").replace("[(", "[\n    ("),
        TEXT.replace("range(2, 3)", "[np.int64(2)]").replace("', 1)", "', numpy.int32(1))"),
        TEXT.replace("range(2, 3)", "list(range(2, 3, 1))"),
        NESTED,
        DICT,
        Genotype.from_text(TEXT).to_json(seed=3),
        f"{TEXT}\n{TEXT.replace('range(2, 3)', '[2]')}",  # a log that repeats itself
    ],
)
def test_genotype_is_found_in_text(text: str) -> None:
    assert read_pasted(text) == Genotype.from_text(TEXT)


@pytest.mark.parametrize(
    "text", [CELL, f"'{CELL}'", f"Structure(4 nodes with {CELL})", f"arch: {CELL}, 91.2 %", CELL.replace("|none~0|", "|", 1)]
)
def test_nas_bench_201_cell_is_found_in_text(text: str) -> None:
    if "none" not in text:  # a node's parts in another order
        text = text.replace("|+|avg_pool_3x3~1|", "|+|avg_pool_3x3~1|none~0|")
    assert read_pasted(text) == Architecture.from_text(CELL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no genotype in .*expected Genotype\\(normal=.* or |op~0|"),
        ("the best one", "no genotype in 'the best one'; expected"),
        (
            TEXT.replace("3x3', 0), ('skip", "3x33', 0), ('skip"),
            "unknown operation 'max_pool_3x33', did you mean max_pool_3x3 or avg_pool",
        ),
        (
            TEXT.replace("max_pool_3x3", "conv_9x1_1x9"),
            "unknown operation 'conv_9x1_1x9', did you mean conv_7x1_1x7.*known are .*--modules",
        ),
        (TEXT.replace("3', 0)", "3', 0, 2)").replace(", 1)", ", 1, 2)"), "gene 0 .* leads to state 0: nodes are 2"),
        (TEXT.replace(NORMAL, f"{NORMAL}, ('skip_connect', 0)"), "two genes per node.* got 3 genes.*FairDARTS.*as triples"),
        (NESTED.replace(NORMAL, f"{NORMAL}, ('skip_connect', 1, 0)"), "genes are .*pairs, or .*triples"),
        (TEXT.replace("range(2, 3)", "None"), r"a range or a list, as in range\(2, 6\)"),
        (TEXT.replace("range(2, 3)", "range(2, 10**9)"), "neither a literal nor a range"),
        (TEXT.replace("range(2, 3)", "range(10000000000)"), "neither a literal nor a range"),
        (
            "Genotype(recurrent=[('sigmoid', 0), ('relu', 1)], concat=range(1, 9))",
            "has the fields normal.*got recurrent, concat",
        ),
        (f"A = {TEXT}\nB = {TEXT.replace('skip_connect', 'max_pool_3x3')}", "2 different genotypes: give only one"),
        (TEXT[:-1], "not a genotype"),
        ("{'normal': 3}", "not a dict with the fields"),
        ("Genotype(" + "(" * 5000, "not a genotype"),
        ("{'normal': " + "[" * 5000, "not a dict"),
    ],
)
def test_unreadable_text_names_expected_form(text: str, message: str) -> None:
    with pytest.raises(GenotypeError, match=message) as caught:
        read_pasted(text)
    assert len(str(caught.value)) < 900


def test_unknown_nas_bench_201_operation_is_rejected() -> None:
    with pytest.raises(ArchitectureError, match="unknown nor_conv_3x33"):
        read_pasted(CELL.replace("nor_conv_3x3~", "nor_conv_3x33~", 1))


@pytest.mark.parametrize(
    "call", ["os.mkdir('made')", "__import__('os').mkdir('made')", "(lambda: open('made', 'w'))()", "[open('made', 'w')][0]"]
)
def test_pasted_text_is_not_executed(call: str, tmp_path: os.PathLike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (TEXT.replace("range(2, 3)", call), TEXT.replace("0)", f"{call})"), DICT.replace("[2]", call), call):
        with pytest.raises(GenotypeError):
            read_pasted(text)
    assert not os.listdir(tmp_path)


def test_custom_candidates_are_known_once_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CANDIDATES, "mine", Candidate("mine", "conv"))
    assert read_pasted(TEXT.replace("max_pool_3x3", "mine")).reduce[0] == ("mine", 0)
