"""Rows of the clients of recipes/federated.yaml: what WordNet has beyond the round's own rows.

    python -m benchmarks.clients                  clients/north, east, south and west
    python -m benchmarks.clients --concentration 100      nearly the same labels at each

Each label's rows are spread over the clients by shares drawn from a Dirichlet distribution: the
smaller its concentration, the more unequal are the clients, in labels and in rows (Lin et al. 2020,
"Ensemble Distillation for Robust Model Fusion in Federated Learning", section 4.1). The rows are
drawn behind those that `collect` draws for the round, so that they are none of its prompts, and
share no word with its dev and test rows.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from cohobate import params
from cohobate.data.records import Row, write_rows
from cohobate.teachers.clients import Client
from flows import overrides
from tasks.collect.row_spool import RowSpool, SpooledSource
from tasks.collect.split import SplitParts, draw_parts
from tasks.collect.stage import CollectParams

RECIPE = "recipes/federated.yaml"


def main() -> None:
    """Write the rows of each client."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000, help="of all clients together")
    parser.add_argument("--concentration", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with overrides.temporarily(Path(), [], RECIPE):
        document = params.load()
    collect: CollectParams = params.validated(CollectParams, document["collect"], "collect")
    clients = [
        params.validated(Client, teacher["client"], f"teachers.{name}.client")
        for name, teacher in document["teachers"].items()
        if "client" in teacher
    ]
    rows = rows_beyond(collect, chosen.rows)
    draw = random.Random(chosen.seed)
    shares = spread(rows, len(clients), chosen.concentration, draw)
    # the client that is named first has most rows
    for client, own in zip(clients, sorted(shares, key=len, reverse=True), strict=True):
        write_rows(client.rows, own)
        labels = len({row.answer for row in own})
        print(f"{client.rows}: {len(own)} rows of {labels} labels")


def rows_beyond(collect: CollectParams, count: int) -> list[Row]:
    """Return rows with answers that come after the round's unlabelled ones in the order of drawing.

    Args:
        collect: the round's section; of one source.
        count: how many rows.
    """
    (one,) = collect.spooled()
    public = one.split.unlabelled
    longer = one.split.model_copy(update={"unlabelled": public + count})
    with TemporaryDirectory() as folder:
        spool = RowSpool([SpooledSource(one.source, one.maker, longer)], Path(folder) / "rows")
        for _ in spool.fill():
            pass
        parts = SplitParts()
        draw_parts([longer], spool.pool, spool.text_of, parts)
        return [*spool.rows().only(parts.unlabelled[public:])]


def spread(
    rows: list[Row], clients: int, concentration: float, draw: random.Random
) -> list[list[Row]]:
    """Spread rows over clients, label by label, in shares of a Dirichlet distribution."""
    by_label = defaultdict(list)
    for row in rows:
        by_label[row.answer].append(row)
    shares: list[list[Row]] = [[] for _ in range(clients)]
    for _, own in sorted(by_label.items(), key=lambda label: str(label[0])):
        # a Dirichlet draw is gamma draws, made to sum to 1
        weights = [draw.gammavariate(concentration, 1) for _ in range(clients)]
        for row in own:
            shares[draw.choices(range(clients), weights)[0]].append(row)
    for share in shares:
        draw.shuffle(share)
    return shares


if __name__ == "__main__":
    main()
