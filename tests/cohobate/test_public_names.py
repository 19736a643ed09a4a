"""The public names of the library's packages, which are imported at their first use."""

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["data", "models", "fast", "generation"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(f"cohobate.{package}")
    for name in module.__all__:
        assert callable(getattr(module, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_importing_the_packages_imports_nothing_heavy() -> None:
    names = ", ".join(f"cohobate.{package}" for package in PACKAGES)
    code = f"import sys, {names}; print(sys.modules.keys() & {{'torch', 'transformers', 'numpy'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
