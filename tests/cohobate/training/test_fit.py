"""`cohobate.training.fit` used alone: the example of its docstring, and the public names."""

import subprocess
import sys
from importlib import import_module
from textwrap import dedent
from typing import Any

import pytest


def test_the_example_of_the_docstring_trains_a_model(model: Any, tokenizer: Any) -> None:
    from cohobate.training import fit

    paragraphs = (fit.__doc__ or "").split("\n\n")
    code = "\n".join(dedent(text) for text in paragraphs if text.startswith("        "))
    assert len(code.splitlines()) <= 10
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    exec(code, names)
    history = names["history"]
    assert len(history) == 10 and history[-1].loss < history[0].loss / 2
    assert not model.training


@pytest.mark.parametrize("package", ["training", "methods", "students"])
def test_public_names_are_there(package: str) -> None:
    module = import_module(f"cohobate.{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) == set(module._MODULES)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = module.nothing_such


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = (
        "import sys, cohobate.training, cohobate.methods, cohobate.students;"
        "print([m for m in ('torch', 'transformers', 'ray', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
