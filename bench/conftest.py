"""Options of the suites."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full-size`: the recorded sizes; without it the benches are small and only show that they run."""
    parser.addoption("--full-size", action="store_true", help="benches in the sizes that are recorded, not small ones")


@pytest.fixture(scope="session")
def full_size(pytestconfig: pytest.Config) -> bool:
    """Whether --full-size was given."""
    return pytestconfig.getoption("--full-size")
