"""Write the pages that are made: of the code errors, params, commands, recipes; the gallery.

.venv/bin/python docs/pages.py            write them (`make pages`)
.venv/bin/python docs/pages.py --check    exit with 1 and their names where one is not current
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]


def pages() -> dict[Path, str]:
    """Return the text of each page."""
    import commands_page
    import errors_page
    import gallery
    import params_page
    import recipes_page

    from cohobate import params
    from flows import params_schema
    from flows.cli import app

    order = list(params.load(ROOT / params.PARAMS))
    return {
        HERE / "errors.md": errors_page.page(ROOT),
        HERE / "params.md": params_page.page(params_schema.json_schema(), order),
        HERE / "commands.md": commands_page.page(app),
        HERE / "recipes.md": recipes_page.page(ROOT / "recipes"),
        HERE / "gallery.md": gallery.page(ROOT),
    }


def main(check: bool) -> int:
    """Write the pages, or name those that are not current; return the exit code."""
    texts = pages()
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text
    ]
    if check:
        print(
            "\n".join(f"{path.relative_to(ROOT)} is not current; fix: make pages" for path in stale)
        )
        return int(bool(stale))
    for path in stale:
        path.write_text(texts[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
