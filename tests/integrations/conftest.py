"""Other people's packages, as quiet as tests need them."""

import importlib.metadata
import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def hide(package):
    """As if a package were not installed: for those that take what is installed for what works."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    sys.modules[package] = None
    importlib.metadata.version = but_for(package, importlib.metadata.version)
    importlib.metadata.distribution = but_for(package, importlib.metadata.distribution)


def but_for(package, ask):
    def answer(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return ask(name)

    return answer


try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # absent, or of another build than torch's
    hide("torchvision")


def pytest_collection_modifyitems(items):
    """What these packages warn of is theirs; our own warnings stay errors."""
    for item in items:
        if item.path.parent.name == "integrations":
            for ignored in ("ignore", "error::geomtraj.GeomtrajWarning"):
                item.add_marker(pytest.mark.filterwarnings(ignored))
