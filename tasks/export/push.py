"""Publishing on a model hub: off by default, and refused where licences do not allow it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say

TOKEN = "HF_TOKEN"


class Push(Section):
    """Where the exported forms go. It happens when the stage runs, not when DVC restores it."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name`, made where it does not exist: the first form at its root, others in folders."""
    private: bool = True
    """Whether a repository that is made is hidden from others."""

    def refuse(self, teachers: Mapping[str, Any], gate_passed: bool) -> None:
        """Refuse to publish what may not or should not be published.

        Raises:
            UserError: a teacher's terms do not allow it, the gate was not passed, or the
                environment holds no token.
        """
        fix = "take export.push out of params.yaml"
        for key, teacher in teachers.items():
            if not teacher["outputs_may_train"]:
                raise UserError(
                    f"a student of {key} ({teacher['licence']}) is not published: its terms do "
                    "not say that its outputs may train another model",
                    where="params.yaml, export.push",
                    fix=fix,
                )
        if not gate_passed:
            raise UserError(
                "the gate was not passed: this student is not published",
                where="data/evaluate/summary.json",
                fix=fix,
            )
        if not os.environ.get(TOKEN):
            raise UserError(
                "no token for the hub in the environment",
                where="params.yaml, export.push",
                fix=f"export {TOKEN}=...",
            )

    def upload(self, forms: Sequence[Path]) -> None:
        """Send the folders of the forms, a commit each.

        Raises:
            UserError: the hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        try:
            hub = HfApi(token=os.environ[TOKEN])
            hub.create_repo(self.repo, private=self.private, exist_ok=True)
            for number, folder in enumerate(forms):
                hub.upload_folder(
                    repo_id=self.repo,
                    folder_path=folder,
                    path_in_repo=folder.name if number else None,
                    commit_message=f"{folder.name}: a round of Cohobate",
                )
        except Exception as error:  # unreachable, refused and offline are a class each
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot publish on the hub: {reason[0]}",
                where=self.repo,
                fix="check the name, the token and the connection; cohobate run sends it again",
            ) from error
        say(f"published as {self.repo}")
