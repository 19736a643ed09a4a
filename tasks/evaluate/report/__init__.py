"""The report of a round: `reports/report.html`, a self-contained file, and `report.md`.

`render` only reads files, and can be called at any time. The reports are not hashed: they can be
rendered again from hashed files.
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
    filters = ("points", "signed", "count", "short", "size", "times", "duration", "figure")
    templates.filters |= {name: getattr(number_text, name) for name in filters}
    content = view(RoundFiles(root), against)
    folder = root / REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    if content["cost_record"]:
        write_json(root / COST, content["cost_record"])
    for name in ("report.html", "report.md"):
        partial = folder / f"{name}.partial"
        partial.write_text(templates.get_template(f"{name}.j2").render(content), encoding="utf-8")
        partial.replace(folder / name)
    return folder / "report.html"
