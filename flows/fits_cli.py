"""The command `cohobate fits`: memory of a round's stages per device, before anything runs."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohobate.errors import UserError
from flows.console import Exit, Json, out, plain, print_json, project_root

if TYPE_CHECKING:
    from tasks.preflight.stage_memory import StageMemory

ConfigFile = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="A config.json in place of the one in params.yaml: no weights needed."
    ),
]
_DEVICES = re.compile(r"^(?:(\d+)x)?(\d+(?:\.\d+)?)$")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples: `cohobate fits` · `cohobate fits --devices 8x80` · `cohobate fits "
        "--teacher 70b/config.json --student 8b/config.json --devices 8x80 "
        "--set train.kd.workers=8`"
    )(fits)


def fits(
    *,
    devices: Annotated[
        str,
        typer.Option(
            metavar="[N x]GIB",
            help="Reckon with N GPUs of so many GiB, such as 8x80 or 24, in place of what is here.",
        ),
    ] = "",
    teacher: ConfigFile = "",
    student: ConfigFile = "",
    stage: Annotated[
        str | None, typer.Option(help="This stage alone, such as `train@kd` or `train`.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of params.yaml for this command alone."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print how much memory each stage needs on one device, and what would make it fit.

    Exit code 1 where a stage does not fit even with short rows.
    """
    from flows import overrides
    from flows.memory_estimate import estimate_memory
    from tasks.preflight.memory_table import table_lines

    root = project_root()
    count, gib = parsed(devices)
    with overrides.temporarily(root, settings or [], None):
        estimates = estimate_memory(
            root,
            teacher=Path(teacher) if teacher else None,
            student=Path(student) if student else None,
            gpus=count,
            gpu_gib=gib,
        )
    if stage:
        names = {one.stage for one in estimates}
        estimates = [one for one in estimates if stage in {one.stage, one.stage.split("@")[0]}]
        if not estimates:
            raise UserError(
                f"no model runs in a stage {stage!r}", fix=f"one of {', '.join(sorted(names))}"
            )
    if as_json:
        print_json([as_values(one) for one in estimates])
    else:
        for line in table_lines(estimates):
            out.print(plain(line), highlight=False, soft_wrap=True)
    if not all(one.fits_short for one in estimates):
        raise typer.Exit(Exit.FAILED)


def parsed(devices: str) -> tuple[int | None, float | None]:
    """Return count and GiB of `8x80`; None and None of nothing.

    Raises:
        UserError: it is neither a size nor a count and a size.
    """
    if not devices:
        return None, None
    if not (match := _DEVICES.match(devices.replace(" ", ""))):
        raise UserError(f"{devices!r} names no GPUs", where="--devices", fix="--devices 8x80")
    return int(match[1] or 1), float(match[2])


def as_values(estimate: "StageMemory") -> dict[str, Any]:
    """Return an estimate as JSON values: bytes, and options of `cohobate run`."""
    return {
        "stage": estimate.stage,
        "bytes": estimate.parts,
        "bytes_of_short_rows": sum(estimate.short.values()),
        "total": estimate.total,
        "available": estimate.device.available,
        "device": estimate.device.kind,
        "workers": estimate.workers,
        "fits": estimate.fits,
        "fix": estimate.fix,
    }
