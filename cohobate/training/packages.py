"""Packages that some settings of a training need, and that come with an extra."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.training.hyperparameters import Hyperparameters

EXTRA = "uv pip install -e '.[quantised]'"


def check_packages(sections: Mapping[str, Section]) -> None:
    """Refuse settings of trainings whose package is not installed.

    Args:
        sections: by their keys in params.yaml, such as `train.kd`; those of no training need none.

    Raises:
        UserError: names the setting and the package, and how to get it.
    """
    for key, section in sections.items():
        needed = _needed(section) if isinstance(section, Hyperparameters) else ()
        for field, setting, package in needed:
            if not is_installed(package):
                where = f"params.yaml, {key}.{field}"
                raise UserError(f"{setting} needs the package {package}", where=where, fix=EXTRA)


def is_installed(package: str) -> bool:
    """Say whether a package is there, without importing it."""
    return find_spec(package) is not None


def _needed(hyperparameters: Hyperparameters) -> Iterator[tuple[str, str, str]]:
    """Yield the field, the setting and the package of each setting that needs one."""
    if hyperparameters.optimiser == "adamw_8bit":
        yield "optimiser", "adamw_8bit", "torchao"
    adapter = hyperparameters.adapter
    if adapter.type == "lora" and adapter.base_precision == "nf4":
        yield "adapter.base_precision", "nf4", "bitsandbytes"
    if hyperparameters.quantisation.type != "none":
        yield "quantisation", "quantisation", "torchao"
