"""The report of a round: `reports/report.html`, one file that needs nothing else, and `report.md`.

`render` reads files only and may be called at any time. Neither report is hashed: both can be made
again from what is.
"""

from pathlib import Path

from cohobate.data.records import REPORTS
from tasks.evaluate.cost import COST


def render(root: Path = Path(), against: str = "") -> Path:
    """Write the report of the round below `root`; return the path of the HTML file.

    Args:
        root: the project.
        against: another round to compare with: a git revision, or a folder with a metrics.json.

    Raises:
        UserError: no round has been evaluated there.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from cohobate.data.records import write_json
    from cohobate.evaluation import number_text
    from tasks.evaluate.report.round_files import RoundFiles
    from tasks.evaluate.report.view import view

    templates = Environment(
        loader=PackageLoader("tasks.evaluate.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = ("points", "signed", "count", "short", "size", "times", "duration", "figure")
    templates.filters |= {name: getattr(number_text, name) for name in written}
    shown = view(RoundFiles(root), against)
    folder = root / REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    if shown["worked_out"]:
        write_json(root / COST, shown["worked_out"])
    for name in ("report.html", "report.md"):
        partial = folder / f"{name}.partial"
        partial.write_text(templates.get_template(f"{name}.j2").render(shown), encoding="utf-8")
        partial.replace(folder / name)
    return folder / "report.html"
