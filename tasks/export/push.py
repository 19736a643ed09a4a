"""Publishing on a model hub: off by default, and refused where licences do not allow it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say

TOKEN = "HF_TOKEN"
_NAME = r"^[\w.-]+/[\w.-]+$"


class Push(Section):
    """Where the student and its data go. It happens when the stage runs, not when DVC restores it.

    Repositories are `owner/name`, and made where they do not exist.
    """

    repo: str | None = Field(None, pattern=_NAME)
    """Of the exported forms: the first at its root, others in folders."""
    dataset: str | None = Field(None, pattern=_NAME)
    """Of the training data of the round, with its card: a repository of data sets."""
    adapter: str | None = Field(None, pattern=_NAME)
    """Of the student's low-rank updates, unmerged, in PEFT's format; for a phase with `adapter:
    {type: lora, save_adapter: true}`. Its base goes along, unless it is a model of the hub."""
    private: bool = True
    """Whether a repository that is made is hidden from others."""

    @model_validator(mode="after")
    def _something_differs(self) -> "Push":
        if not (self.repo or self.dataset or self.adapter):
            raise ValueError("name a repository: repo, dataset or adapter")
        if self.repo is not None and self.repo == self.adapter:
            raise ValueError("forms and adapter need a repository each")
        return self

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

    def upload(self, forms: Sequence[Path], dataset: Path, adapter: Path | None = None) -> None:
        """Send what has a repository: the forms a commit each, the data set, the adapter.

        Args:
            forms: folders of the forms.
            dataset: the folder of the training data and its card.
            adapter: the folder of the adapter's repository.

        Raises:
            UserError: the hub cannot be reached or refuses.
        """
        for number, folder in enumerate(forms if self.repo else ()):
            self._send(self.repo, "model", folder, folder.name if number else None, folder.name)
        self._send(self.dataset, "dataset", dataset, None, "training data")
        if adapter:
            self._send(self.adapter, "model", adapter, None, "adapter")

    def _send(self, repo: str | None, kind: str, folder: Path, path: str | None, what: str) -> None:
        """Send one folder as a commit; nothing where there is no repository for it."""
        if repo is None:
            return
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        try:
            hub = HfApi(token=os.environ[TOKEN])
            hub.create_repo(repo, repo_type=kind, private=self.private, exist_ok=True)
            hub.upload_folder(
                repo_id=repo,
                repo_type=kind,
                folder_path=folder,
                path_in_repo=path,
                commit_message=f"{what}: a round of Cohobate",
            )
        except Exception as error:  # unreachable, refused and offline are a class each
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot publish on the hub: {reason[0]}",
                where=repo,
                fix="check the name, the token and the connection; cohobate run sends it again",
            ) from error
        say(f"{what}: published as {repo}")
