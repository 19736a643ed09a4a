"""Settings of a teacher that runs in Ray actors of its own (cohobate/teachers/ray_pool.py)."""

from pydantic import Field

from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section


class TeacherWorkers(Section):
    """Ray actors that have the teacher's weights, each of them all."""

    workers: int = Field(1, ge=1)
    """Actors. They are started with the stage, and stopped with it."""
    gpus_each: float = Field(0, ge=0)
    """GPUs of each; 0: they run on CPUs."""

    def number_format(self, precision: Precision, device: str) -> NumberFormat:
        """Return the number format in which the teacher runs.

        Args:
            precision: the setting.
            device: kind of this process's own device.
        """
        return resolve(precision, "cuda" if self.gpus_each else device)
