"""The documentation: pages made from the code are current, links lead somewhere, commands exist."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from flows import params_schema
from flows.cli import app
from tests.tiny_project import BIN, ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
MADE = ("errors.md", "params.md", "commands.md", "recipes.md", "gallery.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(cohobate [^`\n]+)`")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def names(paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(path: Path, *languages: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text("utf-8")) if kind in languages]


def test_the_pages_that_are_made_from_the_code_are_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import pages

    assert pages.main(check=True) == 0, capsys.readouterr().out


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    done = subprocess.run(
        [str(BIN / "zensical"), "build", "--clean", "--strict", "--config-file", "mkdocs.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        name = "index" if page.name == "README.md" else page.stem
        html = (tmp_path / "site" / f"{name}.html").read_text("utf-8")
        assert not re.findall(
            r'(?:src|href)="(?:https?:)?//(?!zensical)[^"]*\.(?:js|css|woff2?)"', html
        )


def test_every_page_is_in_the_contents_and_in_the_list_of_pages() -> None:
    contents = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert contents == {page.name for page in PAGES}
    listed = set(re.findall(r"\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == contents - {"README.md"}


@pytest.mark.parametrize("text", names(TEXTS))
def test_links_and_anchors_lead_somewhere(text: str) -> None:
    path = ROOT / text
    for link in LINK.findall(BLOCK.sub("", path.read_text("utf-8"))):
        file, _, anchor = link.partition("#")
        if "://" in file:
            continue
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), link
        if anchor:
            assert anchor in anchors(linked), link


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site make them of its headings."""
    text = BLOCK.sub("", path.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    plain = (re.sub(r"<[^>]*>|[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain} | {
        *re.findall(r'id="([^"]+)"', text)
    }


@pytest.mark.parametrize("text", names(TEXTS))
def test_commands_and_their_options_exist(text: str) -> None:
    path = ROOT / text
    lines = [line for code in blocks(path, "bash", "sh", "") for line in joined(code).splitlines()]
    for line in [*lines, *INLINE.findall(path.read_text("utf-8"))]:
        for words in commands_of(line):
            check(words)


def joined(code: str) -> str:
    """Return the lines of a block, those that end in a backslash in one."""
    return re.sub(r"\\\n\s*", " ", code)


def commands_of(line: str) -> Iterator[list[str]]:
    """Yield the words of each `cohobate` command in a line of a shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = [*lexer]
    except ValueError:  # an apostrophe in prose
        words = line.split()
    while words:
        end = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
        if words[:1] == ["cohobate"]:
            yield words[1:end]
        words = words[end + 1 :]


def check(words: Sequence[str]) -> None:
    """Hold one command to the program: its name, its options and the keys that it sets."""
    words = [word for word in words if word not in ("--debug", "...", "COMMAND")]
    if not words or words[0] == "--help":
        return
    name, *rest = words
    assert name in COMMANDS, f"no command {name}"
    command = COMMANDS[name]
    if children := getattr(command, "commands", None):
        if not rest:
            return  # `cohobate search`, of all its commands
        assert rest[0] in children, f"no command {name} {rest[0]}"
        command, rest = children[rest[0]], rest[1:]
    options = {one for parameter in command.params for one in parameter.opts}
    options |= {one for parameter in command.params for one in parameter.secondary_opts}
    for at, word in enumerate(rest):
        if word.startswith("--"):
            assert word.partition("=")[0] in {*options, "--help"}, f"{name} has no {word}"
        if at and rest[at - 1] == "--set" and "." in word.partition("=")[0]:
            key, _, value = word.partition("=")
            assert knows(SCHEMA, key.split(".")), f"no key {key}"
            if value.startswith("{") and "ENDPOINT" not in value:
                settings_are_known(YAML(typ="safe").load(value), key.split("."))


SCHEMA = json.loads(json.dumps(params_schema.json_schema()))


def knows(schema: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Return whether a schema has a dotted key, in any of its alternatives."""
    if not keys:
        return True
    if "$ref" in schema:
        return knows(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], keys)
    if several := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        return any(knows(one, keys) for one in several)
    first, *rest = keys
    inside: Any = schema.get("properties", {}).get(first)
    if first.isdigit():
        inside = inside or schema.get("items")
    for named in schema.get("patternProperties", {}).values():  # a name of the user's own
        inside = inside or named
    inside = inside or schema.get("additionalProperties", not schema)
    return inside is True or (bool(inside) and knows(inside, rest))


def settings_are_known(value: Any, keys: Sequence[str]) -> None:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if key == "...":
                continue
            assert knows(SCHEMA, [*keys, str(key)]), f"no key {'.'.join([*keys, str(key)])}"
            settings_are_known(inside, [*keys, str(key)])
    elif isinstance(value, list):
        for place, inside in enumerate(value):
            settings_are_known(inside, [*keys, str(place)])


@pytest.mark.parametrize("text", names(TEXTS))
def test_settings_in_blocks_of_yaml_are_those_of_params_yaml(text: str) -> None:
    for code in blocks(ROOT / text, "yaml"):
        document = YAML(typ="safe").load(re.sub(r",? ?\.\.\.(?=\})", "", code))
        if text.endswith("CONTRIBUTING.md") or "space" in document:
            continue  # a stage of dvc.yaml; a search
        for section in document:
            assert section in (*SCHEMA["properties"], "resources"), section
        settings_are_known(document, [])
