"""The command that lists recipes."""

import typer

from flows.console import Json, out, plain, print_json, project_root


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "recipes",
        epilog="Examples: `cohobate recipes` · `cohobate run --recipe recipes/gkd.yaml` starts "
        "one · with `--dry-run` it shows what would run · `cohobate run --recipe recipes/code.yaml "
        "--recipe recipes/sequence-kd.yaml` writes two that set different keys",
    )(list_recipes)


def list_recipes(as_json: Json = False) -> None:
    """List the recipes by family: known distillation methods, each an overlay on params.yaml."""
    from flows import recipes
    from flows.recipe_heads import FAMILIES, by_family, read_head

    root = project_root()
    descriptions = recipes.listed(root)
    if as_json:
        print_json(descriptions)
        return
    width = max(map(len, descriptions), default=0)
    for family, heads in by_family([read_head(root / path) for path in descriptions]).items():
        meaning = f": {FAMILIES[family]}" if family in FAMILIES else ""
        out.print(f"[bold]{plain(family)}[/]{meaning}", highlight=False)
        for head in heads:
            path = head.path.relative_to(root).as_posix()
            out.print(f"  {path:<{width}}  {plain(head.title)}", highlight=False)
    out.print("start one: cohobate run --recipe FILE", style="dim", highlight=False)
