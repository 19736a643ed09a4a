"""How a benchmark of the data stages tells what came out: a table, a JSON file, an exit code."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine


def parser(text: str, name: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks") / f"{name}.json")
    options.add_argument("--check", action="store_true", help="fail where a target is missed")
    return options


def tell(
    options: argparse.Namespace,
    lines: Sequence[Mapping[str, Any]],
    targets: Mapping[str, tuple[float, str, float]],
) -> int:
    """Print the lines and the targets, write both; return the exit code.

    Args:
        options: what `parser` parsed.
        lines: rows of the table, with the same keys.
        targets: figure, `>=` or `<=`, and bound, by name.
    """
    here = machine()
    print(", ".join(here.values()))
    names = list(lines[0])
    cells = [names, *[[_short(line[name]) for name in names] for line in lines]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    met = {
        name: figure >= bound if sign == ">=" else figure <= bound
        for name, (figure, sign, bound) in targets.items()
    }
    for name, (figure, sign, bound) in targets.items():
        outcome = "met" if met[name] else "MISSED"
        print(f"{name}: {_short(figure)} (target {sign} {bound:g}) {outcome}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "machine": here,
        "lines": lines,
        "targets": {n: [*t, met[n]] for n, t in targets.items()},
    }
    options.out.write_text(json.dumps(whole, indent=2) + "\n")
    return int(options.check and not all(met.values()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
