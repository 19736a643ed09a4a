"""The trackers that `track` of params.yaml can name; a new one is a class and its name below.

Each runs in a process of its own (`flows/tracking/tracker_process.py`): it may block, raise or
never come back. Addresses and keys come from the environment alone.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cohobate.errors import UserError
from cohobate.params import validated
from flows.tracking.client import Figures, RoundOutputs, TrackedRun, TrackerClient, flat

LOCAL = Path("reports/trackers")
"""Where trackers write files, below the project; outside of everything that is hashed."""
_PROJECT = "cohobate"


class TensorBoardTracker(TrackerClient):
    """Event files in reports/trackers/tensorboard: `tensorboard --logdir reports/trackers`."""

    package = "tensorboardX"

    def open(self, run: TrackedRun) -> None:
        """Make the round's folder."""
        name = re.sub(r"[^\w.=-]+", "-", run.name)
        self._folder = _unused(LOCAL / "tensorboard" / name)
        self._writers: dict[str, Any] = {}
        facts = flat(run.params) | run.tags
        table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
        self._writer("").add_text("params", f"| | |\n|---|---|\n{table}")

    def _writer(self, curve: str) -> Any:
        from tensorboardX import SummaryWriter

        if curve not in self._writers:
            folder = self._folder / curve.replace("/", "-") if curve else self._folder
            self._writers[curve] = SummaryWriter(str(folder))
        return self._writers[curve]

    def add_points(self, curve: str, points: Sequence[tuple[int, Figures]]) -> None:
        """Add scalars; the runs of one round lie over each other."""
        for step, figures in points:
            for name, value in figures.items():
                self._writer(curve).add_scalar(name, value, step)

    def add_figures(self, figures: Figures) -> None:
        """Add scalars at step 0."""
        for name, value in figures.items():
            self._writer("").add_scalar(name, value, 0)

    def add_outputs(self, outputs: RoundOutputs) -> None:
        """Add the list as text."""
        self._writer("").add_text("outputs", outputs.text)

    def close(self, succeeded: bool) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class MlflowTracker(TrackerClient):
    """A run on the server of MLFLOW_TRACKING_URI, in the experiment of MLFLOW_EXPERIMENT_NAME."""

    package = "mlflow"
    extra = "mlflow"

    def __init__(self) -> None:
        self._run = ""

    @classmethod
    def check(cls) -> None:
        """Refuse a missing package, or a missing server."""
        super().check()
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(
                "the environment does not say where MLflow is",
                where="params.yaml, track",
                fix="export MLFLOW_TRACKING_URI=http://127.0.0.1:5000   (mlflow server)",
            )

    def open(self, run: TrackedRun) -> None:
        """Create the run, with its params and tags."""
        # by default a request is repeated for minutes: it is repeated later, by who calls
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if not self._run:  # it may be called again because of the params alone
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            existing = self._client.get_experiment_by_name(name)
            number = existing.experiment_id if existing else self._client.create_experiment(name)
            created = self._client.create_run(number, tags=run.tags, run_name=run.name)
            self._run = created.info.run_id
        params = [Param(_mlflow_name(k), v[:6000]) for k, v in flat(run.params).items()]
        for start in range(0, len(params), 100):  # the server takes no more at once
            self._client.log_batch(self._run, params=params[start : start + 100])

    def _add(self, figures: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [self._metric(_mlflow_name(n), value, now, step) for n, value, step in figures]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])

    def add_points(self, curve: str, points: Sequence[tuple[int, Figures]]) -> None:
        """Log metrics such as `kd/seed-1/loss`."""
        self._add(
            (f"{curve}/{name}", value, step)
            for step, figures in points
            for name, value in figures.items()
        )

    def add_figures(self, figures: Figures) -> None:
        """Log metrics without steps."""
        self._add((name, value, 0) for name, value in figures.items())

    def add_outputs(self, outputs: RoundOutputs) -> None:
        """Write the list as the run's description; keep a copy of the report as an artifact."""
        self._client.set_tag(self._run, "mlflow.note.content", outputs.text[:5000])
        if outputs.report:
            self._client.log_artifact(self._run, outputs.report)

    def close(self, succeeded: bool) -> None:
        """Set the run's state."""
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


class WandbTracker(TrackerClient):
    """A run of Weights & Biases, in the project WANDB_PROJECT; WANDB_MODE=offline writes files."""

    package = "wandb"
    extra = "wandb"

    @classmethod
    def check(cls) -> None:
        """Refuse a missing package, or a service without a key."""
        super().check()
        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        login = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
        known = os.environ.get("WANDB_API_KEY") or (
            login.is_file() and "wandb" in login.read_text()
        )
        if not (offline or known):
            raise UserError(
                "the environment has no key of Weights & Biases",
                where="params.yaml, track",
                fix="export WANDB_API_KEY=..., or WANDB_MODE=offline, then: wandb sync",
            )

    def open(self, run: TrackedRun) -> None:
        """Begin the run; of this machine, its command and its code nothing is sent."""
        os.environ.setdefault("WANDB_DIR", str(LOCAL))
        Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=30,
        )
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        config = run.params | {"tags": run.tags}
        self._run = wandb.init(project=project, name=run.name, config=config, settings=settings)
        self._curves = set[str]()

    def add_points(self, curve: str, points: Sequence[tuple[int, Figures]]) -> None:
        """Log metrics such as `kd/seed-1/loss`, over the updates of their own training run."""
        if curve not in self._curves:  # else runs that train at the same time share one axis
            self._run.define_metric(f"{curve}/update", hidden=True)
            self._run.define_metric(f"{curve}/*", step_metric=f"{curve}/update")
            self._curves.add(curve)
        for step, figures in points:
            values = {f"{curve}/{name}": value for name, value in figures.items()}
            self._run.log(values | {f"{curve}/update": step})

    def add_figures(self, figures: Figures) -> None:
        """Set the run's summary."""
        self._run.summary.update(dict(figures))

    def add_outputs(self, outputs: RoundOutputs) -> None:
        """Write the list as the run's notes; keep a copy of the report."""
        self._run.notes = outputs.text
        self._run.summary["outputs"] = outputs.text
        if outputs.report:
            import wandb

            page = Path(outputs.report).read_text("utf-8")
            self._run.log({"report": wandb.Html(page, inject=False)})

    def close(self, succeeded: bool) -> None:
        """End the run; it waits until all is sent."""
        self._run.finish(exit_code=0 if succeeded else 1)


class TrackioTracker(TrackerClient):
    """A run of Trackio, in the project TRACKIO_PROJECT: `trackio show`."""

    package = "trackio"
    extra = "trackio"

    def open(self, run: TrackedRun) -> None:
        """Begin the run."""
        import trackio

        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=run.name,
            config=flat(run.params) | run.tags,
            private=True,  # of a Space that TRACKIO_SPACE_ID names
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def add_points(self, curve: str, points: Sequence[tuple[int, Figures]]) -> None:
        """Log metrics such as `kd/seed-1/loss`."""
        for step, figures in points:
            self._run.log({f"{curve}/{name}": v for name, v in figures.items()}, step=step)

    def add_figures(self, figures: Figures) -> None:
        """Log metrics at step 0."""
        self._run.log(dict(figures), step=0)

    def add_outputs(self, outputs: RoundOutputs) -> None:
        """Log the list as Markdown."""
        import trackio

        self._run.log({"outputs": trackio.Markdown(outputs.text)}, step=0)

    def close(self, succeeded: bool) -> None:
        """End the run."""
        self._run.finish()


TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
TRACKERS: dict[TrackerName, type[TrackerClient]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""The class of each tracker; the section `track` of params.yaml is a list of these names."""


def named_in(document: Mapping[str, Any]) -> tuple[TrackerName, ...]:
    """Return the trackers that a params.yaml names; it need not have the section."""
    names: tuple[TrackerName, ...] = validated(
        tuple[TrackerName, ...], document.get("track") or (), "track"
    )
    return tuple(dict.fromkeys(names))


def check(names: Sequence[TrackerName]) -> None:
    """Refuse trackers that cannot work here, before anything is started.

    Raises:
        UserError: the first of them that cannot.
    """
    for name in names:
        TRACKERS[name].check()


def _unused(folder: Path) -> Path:
    """Return the folder, or one with a number where an earlier round has that name."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w./ :-]", "-", name)
