"""One choice of a round at a time: the same round with each variant of it, compared in pairs.

    python -m benchmarks.variants benchmarks/variants/filters.yaml

A variant is an overlay on params.yaml, as a recipe is. The rounds run one after the other in this
folder; what a variant does not touch is restored. params.yaml is put back at the end, and the next
`cohobate run` puts back the outputs. Three seeds each; the intervals hold for other test rows and
other seeds, and the differences are those of the same test rows (cohobate/evaluation/bootstrap.py).
Nothing is chosen here: all is shown.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks.outcome import parser, tell
from cohobate import params
from cohobate.data.records import read_rows
from cohobate.evaluation.bootstrap import Bootstrap, Floats
from flows import overrides
from tasks.evaluate.predictions import PREDICTIONS, Prediction

ROOT = Path()
SEEDS = "seeds=[1,2,3]"
GATE_CLOSED = 3


def main() -> int:
    """Run the variants of a file and compare them."""
    options = parser(__doc__ or "", "variants")
    options.add_argument("file", type=Path)
    chosen = options.parse_args()
    choice = YAML(typ="safe").load(chosen.file.read_text())
    chosen.out = chosen.out.with_stem(chosen.file.stem)
    measured = {name: _round_with(overlay) for name, overlay in choice["variants"].items()}
    return tell(chosen, _lines(measured, choice["against"]), {})


def _round_with(overlay: Mapping[str, Any]) -> tuple[int, Floats]:
    """Run a round with an overlay; return its training rows, and its scores, (seeds, rows).

    Raises:
        CalledProcessError: the round failed; a closed gate (exit code 3) is no failure.
    """
    recipe = ROOT / ".cohobate/variant.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(json.dumps(overlay))
    with overrides.temporarily(ROOT, [SEEDS], recipe.as_posix()):
        command = [str(Path(sys.executable).with_name("cohobate")), "run", "--stage", "evaluate"]
        done = subprocess.run(command, check=False)
        if done.returncode not in (0, GATE_CLOSED):
            raise subprocess.CalledProcessError(done.returncode, command)
        evaluate = params.load(ROOT / params.PARAMS)["evaluate"]
        files = sorted((PREDICTIONS / evaluate["student"]).glob("seed-*.jsonl"))
        metric = evaluate["metrics"][0]["type"]
        scores = [[row.scores[metric] for row in read_rows(file, Prediction)] for file in files]
        return len((ROOT / "data/filter/kept.jsonl").read_bytes().splitlines()), np.array(scores)


def _lines(measured: Mapping[str, tuple[int, Floats]], against: str) -> list[dict[str, Any]]:
    draws = Bootstrap({name: scores for name, (_, scores) in measured.items()}, 10_000, seed=0)
    lines = []
    for name, (rows, scores) in measured.items():
        score, gain = draws.score(name), draws.difference(name, against)
        lines.append(
            {
                "variant": name,
                "rows": rows,
                "score": f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]",
                "seeds": " ".join(f"{mean:.3f}" for mean in scores.mean(axis=1)),
                f"points over {against}": "-"
                if name == against
                else f"{gain.mean * 100:+.1f} [{gain.low * 100:+.1f}, {gain.high * 100:+.1f}]",
            }
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
