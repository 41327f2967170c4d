import pytest


@pytest.fixture(scope="session")
def attacks(request):
    """How many attacks of each kind to make."""
    return request.config.getoption("--attacks")
