"""The table of memory that preflight, `cohobate run --dry-run` and `cohobate fits` print."""

from collections.abc import Iterator, Sequence

from cohobate.training.device_memory import GIB
from cohobate.training.memory import PARTS
from tasks.preflight.stage_memory import StageMemory


def table_lines(stages: Sequence[StageMemory]) -> Iterator[str]:
    """Yield the lines of the table: GiB of each part on one device, with the longest rows.

    Below a stage that does not fit stands the smallest change with which it does.
    """
    if not stages:
        return
    head = ["GiB a device", *PARTS, "total", "available", "device"]
    rows = [_row(stage) for stage in stages]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    yield _aligned(head, widths)
    for stage, row in zip(stages, rows, strict=True):
        yield _aligned(row, widths)
        if stage.fits is False:
            yield f"  {verdict(stage)}"


def verdict(stage: StageMemory) -> str:
    """Say of a stage that does not fit what would make it fit."""
    assert stage.device.available is not None
    short = sum(stage.short.values())
    fix = f"cohobate run {stage.fix}" if stage.fix else "a smaller model, or a larger device"
    if stage.short == stage.parts:
        return f"{stage.stage}: does not fit; fix: {fix}"
    if short <= stage.device.available:
        # most data have no such rows: nothing is wrong yet
        return (
            f"{stage.stage}: short rows fit ({short / GIB:.1f} GiB), the longest do not; "
            f"where there are such, fix: {fix}"
        )
    return (
        f"{stage.stage}: does not fit, not even with short rows ({short / GIB:.1f} GiB); fix: {fix}"
    )


def _row(stage: StageMemory) -> list[str]:
    available = stage.device.available
    workers = f"{stage.workers} workers, " if stage.workers > 1 else ""
    return [
        stage.stage,
        *(_gib(stage.parts.get(part, 0)) for part in PARTS),
        _gib(stage.total),
        "unknown" if available is None else _gib(available),
        workers + stage.device.label,
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size else "-"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(x.rjust(width) for x, width in rest)]).rstrip()
