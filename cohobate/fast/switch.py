"""The switch of all fast paths: `COHOBATE_FAST=off` takes the plain ones."""

import os

from cohobate.errors import UserError

VARIABLE = "COHOBATE_FAST"


def enabled() -> bool:
    """Say whether fast paths may be taken; read at each use.

    An environment variable and no param: both ways give the same numbers up to rounding, so that
    it decides nothing of what a stage's outputs are.

    Raises:
        UserError: the variable is neither `on` nor `off`.
    """
    value = os.environ.get(VARIABLE, "on")
    if value not in {"on", "off"}:
        raise UserError(
            f"{VARIABLE} is {value!r}", where="environment", fix=f"export {VARIABLE}=off, or on"
        )
    return value == "on"
