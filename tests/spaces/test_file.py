"""Candidate lists from files: both notations, round trips, and messages about invalid ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastdarts.spaces import NASBENCH201, S0, S1, SPACES, Space, SpaceError, named
from fastdarts.spaces.file import from_dict, read, to_dict

PAIR = ["skip_connect", "sep_conv_3x3"]


def write(folder: Path, record: Any, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_one_list_for_all_edges(tmp_path: Path) -> None:
    space = read(write(tmp_path, {"candidates": PAIR}))
    assert space == Space.uniform("mine", tuple(PAIR))


def test_list_per_edge(tmp_path: Path) -> None:
    normal = [PAIR] * 13 + [["noise", "max_pool_3x3"]]
    space = read(write(tmp_path, {"name": "own", "normal": normal, "reduce": ["avg_pool_3x3"]}))
    assert (space.name, space.skeleton, space.nodes, space.inputs) == ("own", "darts", 4, 2)
    assert space.normal == tuple(map(tuple, normal))
    assert space.reduce == (("avg_pool_3x3",),) * 14


def test_other_node_count_and_skeleton(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"nodes": 2, "candidates": PAIR})).num_edges == 5
    bench = read(write(tmp_path, {"skeleton": "nasbench201", "normal": ["skip_connect", "nor_conv_3x3"]}))
    assert (bench.num_edges, bench.inputs, bench.kinds) == (6, 1, ("normal",))


def test_yaml_file_is_read(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="pyyaml is not installed")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: own\nnodes: 1\nnormal: [none, skip_connect]  # all edges\nreduce:\n  - [noise]\n  - - max_pool_3x3\n    - none\n"
    )
    space = read(path)
    assert space == Space("own", (("none", "skip_connect"),) * 2, (("noise",), ("max_pool_3x3", "none")), 1)
    path.write_text("normal: [a\nreduce: b: c")
    with pytest.raises(SpaceError, match=r"mine.yaml is not YAML: .*line 2"):
        read(path)
    for odd, why in (("2024-13-01", "month must be in"), ("!!bool maybe", "'maybe'"), ("!!timestamp foo", ".*group")):
        path.write_text(f"name: {odd}")
        with pytest.raises(SpaceError, match=f"mine.yaml is not YAML: {why}"):
            read(path)
    path.write_text("normal: !!python/object/apply:os.getcwd []")
    with pytest.raises(SpaceError, match="is not YAML: could not determine a constructor"):
        read(path)


def test_missing_pyyaml_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    path = tmp_path / "mine.yml"
    path.write_text("candidates: [skip_connect]")
    with pytest.raises(SpaceError, match=r"mine.yml: YAML files need the package pyyaml \(pip install pyyaml\)"):
        read(path)


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_record_round_trips_through_json(space: Space) -> None:
    record = json.loads(json.dumps(to_dict(space)))
    assert from_dict(record, "here") == space
    assert to_dict(from_dict(record, "here")) == record


def test_changed_candidate_or_order_changes_record() -> None:
    assert to_dict(S0)["normal"] == list(S0.normal[0])
    assert to_dict(S1)["reduce"][5] == ["max_pool_3x3", "avg_pool_3x3"]
    assert "reduce" not in to_dict(NASBENCH201)
    one, other = Space.uniform("mine", ("none", "skip_connect")), Space.uniform("mine", ("skip_connect", "none"))
    assert to_dict(one) != to_dict(other)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected name, skeleton.*got list"),
        ({}, "normal and reduce missing, or candidates"),
        ({"normal": PAIR}, "reduce missing"),
        ({"candidates": PAIR, "normal": PAIR}, "candidates replaces normal and reduce, remove normal"),
        ({"candidates": PAIR, "edges": 3}, "unknown edges; known are name, skeleton, nodes"),
        ({"candidates": PAIR, "name": ""}, "name must be text, got ''"),
        ({"candidates": PAIR, "name": 3}, "name must be text, got 3"),
        ({"candidates": PAIR, "skeleton": "resnet"}, "skeleton must be darts or nasbench201, got 'resnet'"),
        ({"candidates": PAIR, "nodes": 0}, "nodes must be an integer above 0, got 0"),
        ({"candidates": PAIR, "nodes": True}, "nodes must be an integer above 0, got True"),
        ({"candidates": PAIR, "nodes": "4"}, "nodes must be an integer above 0, got '4'"),
        ({"candidates": "skip_connect"}, "normal must be a list of names or 14 lists of names, got 'skip_connect'"),
        ({"candidates": []}, r"normal must be a list of names or 14 lists of names, got \[\]"),
        ({"normal": PAIR, "reduce": [PAIR] * 5 + ["none"] + [PAIR] * 8}, "reduce edge 5: expected a list of names, got 'none'"),
        ({"normal": [*PAIR, None], "reduce": PAIR}, "normal edge 0: expected a list of names"),
        ({"normal": PAIR, "reduce": [PAIR] * 4 + [["skip_connect", 3]]}, "reduce edge 4: expected a list of names"),
        ({"normal": [PAIR] * 13, "reduce": PAIR}, "space mine: normal cell has 14 edges, got candidates of 13"),
        ({"normal": PAIR, "reduce": [PAIR] * 13 + [["conv"]]}, "reduce edge 13: unknown conv; known are none, max_pool_3x3"),
        ({"candidates": ["none"]}, "normal edge 0 has no candidate besides none"),
        ({"normal": [[]] * 14, "reduce": PAIR}, "normal edge 0: an empty list"),
        ({"candidates": ["nor_conv_3x3", "none"]}, "unknown nor_conv_3x3"),
        ({"skeleton": "nasbench201", "normal": PAIR}, "unknown sep_conv_3x3; known are .*nor_conv_3x3"),
        ({"skeleton": "nasbench201", "normal": ["none", "skip_connect"], "reduce": []}, "nasbench201 has no reduce cell"),
    ],
)
def test_invalid_file_is_named_with_reason(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=f"mine.json: .*{message}"):
        read(write(tmp_path, record))


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"none.json cannot be read: .*No such file"):
        read(tmp_path / "none.json")
    path = tmp_path / "mine.json"
    path.write_text("{")
    with pytest.raises(SpaceError, match=r"mine.json is not JSON: .*line 1"):
        read(path)
    path.write_text("[" * 200_000)
    with pytest.raises(SpaceError, match=r"mine.json is not JSON: .*recursion"):
        read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpaceError, match=r"mine.json cannot be read: .*utf-8"):
        read(path)


def test_repeated_key_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"normal": ["noise"], "normal": ["skip_connect"], "reduce": ["noise"]}')
    with pytest.raises(SpaceError, match=r"^\S+mine.json: normal given twice"):
        read(path)
    pytest.importorskip("yaml", reason="pyyaml is not installed")
    path = tmp_path / "mine.yaml"
    path.write_text("candidates: [noise]\nnodes: 4\ncandidates: [skip_connect]\n")
    with pytest.raises(SpaceError, match=r"^\S+mine.yaml: candidates given twice"):
        read(path)


def test_space_names() -> None:
    assert {"s0", "s1", "s2", "s3", "s4", "s5", "nasbench201"} <= set(SPACES)
    assert all(named(name) is SPACES[name] for name in SPACES)
    assert named("S0") is named("s0") is S0
    assert named(" NASBench201 ") is NASBENCH201


def test_unknown_name_is_rejected() -> None:
    with pytest.raises(
        SpaceError, match=r"no space 's6': give s0, s1, s2, s3, s4, s5, nasbench201, or a file .*\.yaml, \.yml, \.json"
    ):
        named("s6")
    with pytest.raises(SpaceError, match=r"s5.json cannot be read"):
        named("s5.json")


def test_file_is_accepted_as_space_name(tmp_path: Path) -> None:
    assert named(str(write(tmp_path, {"candidates": PAIR}))) == Space.uniform("mine", tuple(PAIR))
    assert named(str(write(tmp_path, to_dict(S1), "copy.JSON"))) == S1


@pytest.mark.parametrize("name", ["S1", "NASBench201"])
def test_file_may_not_reuse_space_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {"name": name, "candidates": PAIR})
    with pytest.raises(SpaceError, match=f"mine.json: the name {name} is taken by another space"):
        named(str(path))
