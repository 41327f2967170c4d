import pytest

USUAL = 150


@pytest.fixture(scope="session")
def attacks(request):
    """How many attacks of each kind to make."""
    return request.config.getoption("--attacks")


def pytest_collection_modifyitems(config, items):
    """Ten thousand attacks may take longer than a test of the suite."""
    if config.getoption("--attacks") > USUAL:
        for item in items:
            if "attacks" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(0))
