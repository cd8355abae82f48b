"""Shared by the tests of ops."""

from collections.abc import Iterator

import pytest

from fastdarts import native


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512vl"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that both the native module and this processor have; the kernels run with it."""
    if why := native.reason():
        pytest.skip(why)
    try:
        native.module().set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native.module().set_isa("best")
