"""`cohobate.training.fit` used alone: the example of its docstring."""

from textwrap import dedent
from typing import Any


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
