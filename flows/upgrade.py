"""`cohobate upgrade`: a project of an earlier version gets the names of this one.

Stages, sections of params.yaml and output folders were renamed. params.yaml and dvc.lock are
rewritten with the new names, comments kept; outputs come back from DVC's cache under their new
paths. Ledgers, rounds, tags and remotes keep their format and their place.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cohobate import params
from cohobate.data.records import ANSWER_SIGNALS, write_json
from cohobate.params import ParamsError

RENAMED = {
    "order": "curriculum",
    "pair": "preferences",
    "mine": "hard_examples",
    "shape": "init_student",
}
"""Stages, and the sections of params.yaml with their names."""
_MODEL = "cohobate/packaged/smollm2-135m-instruct.yaml"
_PATHS = {
    **{f"data/{old}": f"data/{RENAMED[old]}" for old in ("order", "pair", "mine")},
    "models/shape": "models/init_student",
    "tasks/filter/stage.py": _MODEL,
    "tasks/order/stage.py": _MODEL,
    "tasks/pair/stage.py": _MODEL,
    "tasks/pair/ranking.py": _MODEL,
    "tasks/collect/wordnet.py": "cohobate/packaged/wordnet.yaml",
    "tasks/collect/replay.py": "cohobate/packaged/no-rows.jsonl",
}
_GONE = {
    "challenge.student": "evaluate.student",
    "challenge.decoding": "evaluate.decoding",
    "mine.student": "evaluate.student",
    "hard_examples.student": "evaluate.student",
    "export.max_tokens": "evaluate.decoding.max_tokens",
}
"""Keys that are no more, each with the one that is read in its place."""
_VALUES = {"generate.reasoning": {"inline": "keep"}}
"""Values that are no more, each with the one that means the same."""
_ADDED = ("assist", "recipe", "collect.sources")


def upgrade(root: Path) -> list[str]:
    """Rewrite params.yaml and dvc.lock with this version's names; return what changed.

    Raises:
        ParamsError: params.yaml is not one that an earlier version could read.
    """
    changes = [*_upgrade_params(root / params.PARAMS)]
    lock = root / "dvc.lock"
    if lock.exists():
        before = lock.read_text("utf-8")
        after = _renamed_lock(before)
        if after != before:
            lock.write_text(after, "utf-8")
            changes.append("dvc.lock: stages and paths have their new names")
    return changes


def renamed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of an earlier version's params.yaml under their present names."""
    return {RENAMED.get(name, name): section for name, section in document.items()}


def keep_all(root: Path) -> list[str]:
    """Keep the outputs of every stage that dvc.lock knows; return the stages' addresses.

    Raises:
        UserError: an output is neither here nor in DVC's cache or remote.
    """
    from cohobate.dvc_bridge import accepted_code, storage, versioning
    from flows.code_changes import refresh_dev_checks, refresh_fingerprints

    refresh_fingerprints(root)
    known = set(versioning.locked_stages(root))
    addresses = [stage.address for stage in versioning.stages(root) if stage.address in known]
    for address in addresses:
        stage, _, teacher = address.partition("@")
        folder = root / ANSWER_SIGNALS / teacher
        # an output that earlier versions did not have: no signals came with their answers
        if stage == "generate" and not folder.exists():
            write_json(folder / "summary.json", {"rows": 0, "tokens": 0})
    storage.pull_outputs(root, addresses)
    refresh_dev_checks(root)
    accepted_code.accept(root, addresses)
    return addresses


def _upgrade_params(path: Path) -> Iterator[str]:
    """Rewrite params.yaml as text, so that its comments and layout stay."""
    before = path.read_text("utf-8")
    known = params.parse(before, str(path))
    if both := [old for old, new in RENAMED.items() if old in known and new in known]:
        raise ParamsError(
            f"params.yaml has {both[0]} and {RENAMED[both[0]]}, which is its new name",
            where=str(path),
            fix=f"delete one of the two sections; {RENAMED[both[0]]} is the one that is read",
        )
    text = before
    for old, new in RENAMED.items():
        text, count = re.subn(rf"^{old}:", f"{new}:", text, flags=re.MULTILINE)
        if count:
            yield f"{old} is {new}"
    text = re.sub(r"\bfrom: shape\b", "from: init_student", text)
    for old, new in _PATHS.items():
        text, count = re.subn(rf"(?<![\w./-]){re.escape(old)}(?![\w-])", new, text)
        if count:
            yield f"{old} is {new}"
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 1000, True
    document = yaml.load(text)
    changed = False
    for key, instead in _GONE.items():
        section, _, name = key.partition(".")
        if name in (document.get(section) or {}):
            value = document[section].pop(name)
            changed = True
            yield f"{key} ({value}) is no more: {instead} is read in its place"
    values = list(_replace_values(document))
    changed = changed or bool(values)
    yield from values
    for key in _ADDED:
        section, _, name = key.rpartition(".")
        place = document[section] if section else document
        if name not in place:
            place[name] = {}
            changed = True
            yield f"{key} is new: {{}}"
    if changed:
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
    elif text != before:
        path.write_text(text, "utf-8")


def _replace_values(document: dict[str, Any]) -> Iterator[str]:
    """Replace the values that are no more; yield what changed."""
    for key, values in _VALUES.items():
        section, _, name = key.partition(".")
        value = (document.get(section) or {}).get(name)
        if value in values:
            document[section][name] = values[value]
            yield f"{key}: {value} is {values[value]}"


def _renamed_lock(text: str) -> str:
    """Return the text of a dvc.lock with the new names of stages, sections and paths."""
    for old, new in RENAMED.items():
        text = re.sub(rf"^  {old}:$", f"  {new}:", text, flags=re.MULTILINE)
        text = re.sub(
            rf"cmd: python -m tasks {old}$", f"cmd: python -m tasks {new}", text, flags=re.M
        )
        text = re.sub(rf"^        {old}(:|\.)", rf"        {new}\1", text, flags=re.MULTILINE)
    for old, new in _PATHS.items():
        if not old.startswith("tasks/"):
            text = re.sub(rf"path: {re.escape(old)}(?=[/\n])", f"path: {new}", text)
    return text
