"""The weights of the best update so far, on disk while a run goes on.

Trained weights alone, as a training checkpoint has them (cohobate/training/checkpointing.py):
low-rank updates of an adapter, each worker's share where they are sharded. Beside the checkpoints:

    .cohobate/training/kd/seed-1/<key>/best-0/update-000120/
        weights.safetensors, shard-…     as in a training checkpoint
        manifest.json
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate import sealed_folder
from cohobate.errors import UserError
from cohobate.training import checkpointing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BestWeights:
    """The folder of one run's best weights."""

    folder: Path

    def save(self, update: int, module: "nn.Module") -> None:
        """Write the trained weights of a module after an update; all workers together."""
        checkpointing.publish(
            self._at(update), lambda partial: checkpointing.write_weights(partial, module)
        )

    def has(self, update: int) -> bool:
        """Return whether the weights of an update are here, and sound."""
        try:
            sealed_folder.verify(self._at(update))
        except UserError:
            return False
        return True

    def load(self, update: int, module: "nn.Module") -> None:
        """Give a module the weights of an update; all workers together."""
        checkpointing.restore_weights(self._at(update), module)

    def drop_all_but(self, updates: set[int]) -> None:
        """Delete the weights of other updates."""
        from cohobate import processes

        kept = {self._at(update) for update in updates}

        def drop() -> None:
            for folder in set(self.folder.glob("update-*")) - kept:
                shutil.rmtree(folder)

        processes.on_first_worker(drop)

    def _at(self, update: int) -> Path:
        return self.folder / f"update-{update:06}"
