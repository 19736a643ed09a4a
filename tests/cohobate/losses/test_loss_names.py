"""The names that packages of the library offer: each is there, and importing them stays light."""

import subprocess
import sys
from importlib import import_module
from inspect import isclass, isfunction

import pytest

PACKAGES = ["cohobate.losses", "cohobate.teachers", "cohobate.teachers.signal_store"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_where_the_table_says(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        home = f"{package}.{module._MODULES[name]}"
        if isclass(value) or isfunction(value):  # a union has no module of its own
            assert value.__module__ == home, name
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        _ = module.Absent


def test_importing_the_packages_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "numpy", "pydantic"]
    code = f"import sys, {', '.join(PACKAGES)}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
