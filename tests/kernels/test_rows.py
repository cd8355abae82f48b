"""What Python, Triton and C++ agree on is said once; the kernels import nothing that is built on them. Needs no Triton."""

import ast
from pathlib import Path

import pytest

from fastdarts.kernels import rows


def test_header_is_up_to_date() -> None:
    if not rows.HEADER.parent.is_dir():
        pytest.skip("not a checkout: there is no csrc")
    assert rows.HEADER.read_text(encoding="utf-8") == rows.header(), "run `python -m fastdarts.kernels.rows` and rebuild"


def test_candidates_are_numbered_as_in_header() -> None:
    """An enum of C++ counts from 0."""
    assert [int(candidate) for candidate in rows.Candidate] == list(range(len(rows.Candidate)))


def test_fields_follow_row_order() -> None:
    parts = pytest.importorskip("fastdarts.kernels.mixed_cell_parts", reason="Triton is not installed")
    for row, fields in zip(
        rows.ROWS, (getattr(parts, row.__name__.removesuffix("Row").upper()) for row in rows.ROWS), strict=True
    ):
        assert [getattr(fields, name.upper()) for name in row._fields] == list(range(len(row._fields)))
        assert len(row._fields) == fields.SIZE


def test_changed_rows_change_kernel_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's cache on disk outlives an upgrade of fastdarts."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from fastdarts.kernels import mixed_cell_parts as parts
    from fastdarts.kernels import mixed_cell_weights as weights

    if not isinstance(weights.tap_gradient, triton.JITFunction):
        pytest.skip("the interpreter compiles nothing")
    before = parts.kernel(weights.tap_gradient.fn).cache_key
    shifted = {name: number + 1 for name, number in parts.UNIT.value._asdict().items()}
    monkeypatch.setattr(weights, "UNIT", parts.Numbers(shifted))
    assert parts.kernel(weights.tap_gradient.fn).cache_key != before


@pytest.mark.parametrize("file", sorted(Path(rows.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_kernels_do_not_import_ops(file: Path) -> None:
    """Imports go from ops to kernels, never back."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name for name in names if name.split(".")[0] == "fastdarts"}
    allowed = ("fastdarts.kernels", "fastdarts.native", "fastdarts.logs")
    assert {name for name in inside if not f"{name}.".startswith(tuple(f"{a}." for a in allowed))} == set()
