"""API keys for stages that use a service: from the environment, or from a Prefect Secret block.

`key: EXAMPLE_API_KEY` of a teacher or a judge names the environment variable. Where it is not set,
the key is read from the block `example-api-key` of the Prefect server (`prefect block create
secret`, or its UI). A key is passed to the worker as an argument that prints as stars, set in the
environment while the stage runs, and removed again: it is in no params, Ray runtime environment,
log or result.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from pydantic import SecretStr

from cohobate.backends.ledger_storage import LEDGER_VARIABLE
from cohobate.dvc_bridge.versioning import StageNode

ApiKeys = Mapping[str, SecretStr]
"""Keys by the names of their environment variables."""


def keys_for(node: StageNode, document: Mapping[str, Any]) -> ApiKeys:
    """Return the API keys of the models that a stage sends requests to, as far as available.

    Where the ledger is on S3, `COHOBATE_LEDGER` goes with them.
    """
    teachers: list[str]
    match node.name:
        case "preflight":  # asks services that give signals which models they have
            teachers = [name for name, one in document["teachers"].items() if one.get("signals")]
        case "generate" | "capture":  # of a local teacher there is no key
            teachers = [node.address.partition("@")[2]]
        case "evaluate":  # a teacher behind an API also answers the test prompts
            teachers = [document["evaluate"]["teacher"]]
        case "train" | "assist":  # on_policy has a service score the student's answers
            phase = document[node.name][node.address.partition("@")[2]]
            teachers = [phase.get("targets", "").removeprefix("models/adapt/")]
            teachers = [name for name in teachers if name in document["teachers"]]
        case _:
            teachers = []
    models = [document["teachers"][teacher] for teacher in teachers]
    models += _judges(node.name, document)
    if not models:
        return {}
    names = {model.get("key", "") for model in models} - {""}
    values = {name: os.environ.get(name) or _of_block(name) for name in sorted(names)}
    keys = {name: SecretStr(key) for name, key in values.items() if key}
    if (ledger := os.environ.get(LEDGER_VARIABLE, "")).startswith("s3://"):
        keys[LEDGER_VARIABLE] = SecretStr(ledger)  # other nodes have environments of their own
    return keys


def _judges(stage: str, document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the judges of the metrics that a stage scores by."""
    metrics = (document.get("evaluate") or {}).get("metrics") or []
    if stage in ("adapt", "challenge", "export"):  # by the metric that decides
        metrics = metrics[:1]
    elif stage not in ("preflight", "evaluate"):
        return []
    parts = [*metrics]
    for metric in metrics:
        parts += [*(metric.get("metrics") or {}).values(), metric.get("otherwise") or {}]
    return [part["judge"] for part in parts if part.get("judge")]


@contextmanager
def in_environment(keys: ApiKeys) -> Iterator[None]:
    """Set the variables for a block; restore the environment afterwards."""
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update({name: key.get_secret_value() for name, key in keys.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _of_block(name: str) -> str | None:
    from prefect.blocks.system import Secret

    try:
        block = cast(Secret[str], Secret.load(name.lower().replace("_", "-")))
    except ValueError:  # there is no block: the stage reports what is missing
        return None
    return str(block.get())
