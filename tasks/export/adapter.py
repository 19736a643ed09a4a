"""The student's low-rank updates as a repository of their own, unmerged, in PEFT's format.

Its base goes along in the folder `base`, unless it is a model of the hub as it is.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate import sealed_folder
from cohobate.data.records import INIT_STUDENT
from cohobate.errors import UserError
from cohobate.models import checkpoints
from tasks.export.cards import CARD, CardFiles, Exported, write_adapter_card

if TYPE_CHECKING:
    from cohobate.students.initialization import StudentInit

CONFIG, BASE = "adapter_config.json", "base"


class Adapter(NamedTuple):
    """The adapter of one checkpoint."""

    folder: Path
    base: Path
    """The checkpoint that it was trained on."""
    base_name: str
    """Its name on the hub; empty where it goes along."""
    revision: str


def adapter_of(checkpoint: Path, files: CardFiles, init_student: "StudentInit") -> Adapter:
    """Return the adapter that was published beside a checkpoint, and the model that it is for.

    Raises:
        UserError: the adapter was not kept, or its base is not here.
    """
    folder = checkpoint.parent / "adapter" / checkpoint.name
    if not (folder / CONFIG).is_file():
        raise UserError(
            "the student has no adapter of its own",
            where=f"{folder}, which export.push.adapter would publish",
            fix=f"train.{checkpoint.parent.name}.adapter: {{type: lora, save_adapter: true}}",
        )
    base = Path(json.loads((folder / CONFIG).read_bytes())["base_model_name_or_path"])
    start = files.models["student"]
    name, revision = str(start.get("model", "")), str(start.get("revision", ""))
    as_it_is = start["type"] == "pretrained" and init_student.vocabulary == "whole"
    if base == INIT_STUDENT and as_it_is and name.count("/") == 1 and revision:
        return Adapter(folder, base, name, revision)
    if not (base / "config.json").is_file():
        raise UserError(
            "the model that the adapter is for is not here", where=str(base), fix=f"dvc pull {base}"
        )
    return Adapter(folder, base, "", "")


def write_repository(
    adapter: Adapter, repo: str, folder: Path, exported: Exported, files: CardFiles
) -> None:
    """Lay what is published of an adapter into an empty folder: updates, card, and its base."""
    for path in adapter.folder.iterdir():
        if path.name != sealed_folder.MANIFEST:
            shutil.copyfile(path, folder / path.name)
    config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    config["base_model_name_or_path"] = adapter.base_name or f"{repo}/{BASE}"
    config["revision"] = adapter.revision or None
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if not adapter.base_name:
        (folder / BASE).mkdir()
        checkpoints.copy_parts(adapter.base, folder / BASE)
    fields = {"repo": repo, "base_name": adapter.base_name, "revision": adapter.revision}
    write_adapter_card(folder / CARD, fields, exported, files)
