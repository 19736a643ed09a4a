"""The public names of the library's packages: each is where its table says, and imported late."""

import subprocess
import sys
from importlib import import_module
from inspect import isclass, isfunction

import pytest

PACKAGES = (
    "data", "models", "fast", "generation", "losses", "teachers", "teachers.signal_store",
    "training", "students", "methods",
)  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_where_the_table_says(package: str) -> None:
    module = import_module(f"cohobate.{package}")
    homes = {name: home for home, names in module._NAMES.items() for name in names}
    assert dir(module) == module.__all__ == sorted(homes)
    for name, home in homes.items():
        value = getattr(module, name)
        if isclass(value) or isfunction(value):  # a union has no module of its own
            assert value.__module__ == f"cohobate.{package}.{home}", name
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        _ = module.Absent


def test_importing_the_packages_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "trl", "ray", "dvc", "numpy", "pydantic"]
    names = ", ".join(f"cohobate.{package}" for package in PACKAGES)
    code = f"import sys, {names}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
