"""The command `cohobate data`: what a file of data would become."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.console import Exit, Json, err, out, print_json

if TYPE_CHECKING:
    from flows.data_preview import RenderedRow, SourcePreview

File = Annotated[
    str,
    typer.Argument(
        help="A data file, a folder of them, or a pattern in quotes; none: `collect.source`."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="Whose chat template and tokenizer render the rows: a folder or a hub id. Without it "
        "those of the project; outside a project SmolLM2's."
    ),
]
Template = Annotated[
    str,
    typer.Option(
        metavar="JSON", help="`collect.template`, where the columns are of no known format."
    ),
]
ChatTemplate = Annotated[
    str,
    typer.Option(
        metavar="JSON",
        help="Settings of the model's chat template, such as `{enable_thinking: false}`.",
    ),
]
_SHOWN = 1200
"""Characters of a piece of text that are printed."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples: `cohobate data chats.jsonl` · `cohobate data 'exports/*.json' --rows 3` "
        """· `cohobate data qa.csv --template '{"prompt": "Q: {question}", "answer": " {a}"}'` · """
        "`cohobate data tools.jsonl --model Qwen/Qwen3-0.6B --learn all` · `cohobate data` (the "
        "project's own source)"
    )(data)


def data(
    file: File = "",
    *,
    model: Model = "",
    template: Template = "",
    chat_template: ChatTemplate = "",
    learn: Annotated[
        Literal["last", "all"] | None,
        typer.Option(help="`collect.learn`: which turns are learnt."),
    ] = None,
    reasoning: Annotated[
        Literal["keep", "drop"] | None, typer.Option(help="`collect.reasoning`: keep or drop it.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print.")] = 10,
    as_json: Json = False,
) -> None:
    """Show what a data file would become: its format, rows as a model reads them, and refusals.

    Tokens that a student learns are marked.
    """
    from flows import data_preview

    options: dict[str, str] = {"learn": learn or "", "reasoning": reasoning or ""}
    collect = data_preview.settings_of(file, template, options)
    preview = data_preview.read_source(collect, anywhere=bool(file))
    rendered: list[RenderedRow] = []
    name = ""
    if preview.usable:
        name, tokenizer = data_preview.tokenizer_of(model, chat_template)
        rendered = data_preview.render(tokenizer, [row for _, row in preview.first_rows])
    figures = data_preview.token_figures(rendered)
    if as_json:
        print_json(_as_json(preview, name, figures, rendered[:rows]))
    else:
        _show(preview)
        if rendered:
            _show_tokens(name, figures)
            _show_rows(preview, rendered[:rows])
    if not preview.usable:
        err.print("no record can be used")
        raise typer.Exit(Exit.FAILED)


def _as_json(
    preview: "SourcePreview", model: str, figures: dict[str, Any], rows: "list[RenderedRow]"
) -> dict[str, Any]:
    reasons = preview.reasons.most_common()
    return {
        "records": preview.records,
        "usable": preview.usable,
        "formats": dict(preview.formats),
        "counts": dict(preview.counts),
        "unusable": [
            {"reason": why, "count": count, "example": preview.examples[why]}
            for why, count in reasons
        ],
        "model": model,
        "tokens": figures,
        "rows": [
            {
                "format": format_name,
                "row": row.model_dump(mode="json", exclude_none=True),
                "tokens": rendered_row.tokens,
                "learnt_tokens": rendered_row.learnt,
                "text": rendered_row.marked_text,
                "refusal": rendered_row.refusal,
            }
            for (format_name, row), rendered_row in zip(preview.first_rows, rows, strict=False)
        ],
    }


def _show(preview: "SourcePreview") -> None:
    _print(f"{preview.usable:,} of {preview.records:,} records can be used", style="bold")
    for name, count in preview.formats.most_common():
        _print(f"  {count:,} {name}")
    for name, count in sorted(preview.counts.items()):
        _print(f"  {count:,} {name}", style="dim")
    for reason, count in preview.reasons.most_common():
        _print(f"{count:,} x {reason}", style="yellow")
        _print(f"  such as {preview.examples[reason]}", style="dim")


def _show_tokens(model: str, figures: dict[str, Any]) -> None:
    if figures["rows"]:
        _print(
            f"tokens of {model} in {figures['rows']:,} rows: median {figures['median']:,}, longest "
            f"{figures['longest']:,}; learnt: median {figures['median_learnt']:,}"
        )
    for refusal, count in figures["refused"].items():
        _print(f"{count:,} x {refusal}", style="yellow")


def _show_rows(preview: "SourcePreview", rows: "list[RenderedRow]") -> None:
    from rich.text import Text

    from cohobate.data.messages import prompt_text

    for number, row in enumerate(rows, start=1):
        format_name = preview.first_rows[number - 1][0]
        _print(f"\nrow {number}: {format_name}, {row.tokens} tokens, {row.learnt} learnt", "bold")
        if row.refusal:
            _print(row.refusal, style="yellow")
            continue
        own = preview.first_rows[number - 1][1].teacher_prompt
        if own is not None:
            _print(f"the teacher reads: {_shortened(prompt_text(own))}", style="dim")
        text = Text()
        for piece, learnt in row.pieces:
            shown = _shortened(piece)
            if learnt and not out.is_terminal:
                shown = f"[[{shown}]]"
            text.append(shown, style="black on green" if learnt else "")
        out.print(text, highlight=False, soft_wrap=True)


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    left_out = len(text) - _SHOWN
    return f"{text[: _SHOWN // 2]} ... {left_out:,} characters ... {text[-_SHOWN // 2 :]}"


def _print(text: str, style: str = "") -> None:
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
