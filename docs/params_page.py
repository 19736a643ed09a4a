"""The page docs/params.md: every setting of params.yaml, from its JSON schema."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
_HEAD = """\
# Parameters

Every key of `params.yaml`, as `cohobate params --schema` has it. `cohobate params` checks the
file; a key that is not here is refused with the nearest name. `cohobate run --set KEY=VALUE` writes
one. `make pages` writes this page from the settings' classes.

"""
_TAGS = ("method", "type")
"""Keys whose value says which alternative a mapping is."""
_SHARED = 1
"""Fewest keys that several alternatives have in common to be in a table of their own."""


def page(schema: Schema, order: Sequence[str]) -> str:
    """Return the page in Markdown.

    Args:
        schema: the JSON schema of params.yaml.
        order: the sections as the default params.yaml has them.
    """
    return _HEAD + "\n".join(_Page(schema["$defs"]).lines(schema["properties"], order))


class _Page:
    """The definitions of a schema, and which of them are on the page already."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._done: set[str] = set()

    def lines(self, sections: Mapping[str, Schema], order: Sequence[str]) -> Iterator[str]:
        """Yield the lines of all sections."""
        for name in [*(one for one in order if one in sections), *sorted({*sections} - {*order})]:
            section = sections[name]
            yield f"## {name}\n"
            if inside := _by_name(section):
                yield "By name:\n"
                section = inside
            names = _references(section)
            if section.get("$ref"):
                yield from self._definition(names[0])
            elif names:
                yield f"{self._type(section)[:1].upper()}{self._type(section)[1:]}.\n"
                yield from self._alternatives(names)
            else:
                yield f"A {self._type(section)}.\n"

    def _alternatives(self, names: Sequence[str]) -> Iterator[str]:
        fields = [self._definitions[name].get("properties", {}) for name in names]
        common = {
            key: field
            for key, field in fields[0].items()
            if key not in _TAGS and all(other.get(key) == field for other in fields)
        }
        if len(names) < 2 or len(common) < _SHARED:
            common = {}
        if common:
            yield "Each of them has:\n"
            yield from self._table(common, ())
            yield from self._mentioned(common)
        for name in names:
            if name not in self._done:
                yield from self._titled(name, set(common))

    def _titled(self, name: str, without: set[str]) -> Iterator[str]:
        yield f'#### <a id="{name.lower()}"></a>{self._name(name)}\n'
        yield from self._definition(name, without)

    def _definition(self, name: str, without: set[str] = frozenset()) -> Iterator[str]:  # type: ignore[assignment]
        self._done.add(name)
        definition = self._definitions[name]
        if text := definition.get("description"):
            yield _prose(text) + "\n"
        fields = {
            key: field
            for key, field in definition.get("properties", {}).items()
            if key not in without and not (key in _TAGS and "const" in field)
        }
        if fields:
            yield from self._table(fields, definition.get("required", ()))
        yield from self._mentioned(fields)

    def _mentioned(self, fields: Mapping[str, Schema]) -> Iterator[str]:
        """Yield the definitions that fields refer to, where they are not on the page yet."""
        for field in fields.values():
            names = [name for name in _references(field) if name not in self._done]
            if names:
                yield from self._alternatives(names)

    def _table(self, fields: Mapping[str, Schema], required: Sequence[str]) -> Iterator[str]:
        yield "| key | | value | default |"
        yield "|---|---|---|---|"
        for key, field in fields.items():
            default = "" if key in required or "default" not in field else _value(field["default"])
            cells = f"`{key}`", _cell(field.get("description", "")), self._type(field), default
            yield f"| {' | '.join(cells)} |"
        yield ""

    def _name(self, name: str) -> str:
        for tag in _TAGS:
            field = self._definitions[name].get("properties", {}).get(tag, {})
            if "const" in field:
                return f"`{tag}: {field['const']}`"
        return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]+", name)).capitalize()

    def _type(self, field: Schema) -> str:  # noqa: PLR0911
        if "$ref" in field:
            name = field["$ref"].rpartition("/")[2]
            if "properties" not in self._definitions[name]:
                return "any value"
            return f"[{self._name(name)}](#{name.lower()})"
        if "const" in field:
            return _value(field["const"])
        if "enum" in field:
            return ", ".join(_value(one) for one in field["enum"])
        if several := field.get("anyOf") or field.get("oneOf"):
            return " or ".join(dict.fromkeys(self._type(one) for one in several))
        kind = field.get("type", "any value")
        if kind == "array":
            items = field.get("items")
            plural = {"type": "integer"}, {"type": "number"}
            return f"list of {self._type(items)}{'s' * (items in plural)}" if items else "list"
        if kind == "object":
            values = _by_name(field)
            return f"by name: {self._type(values)}" if values else "mapping"
        words = {"null": "`null`", "string": "text", "boolean": "`true`, `false`"}
        return " ".join([words.get(kind, kind), *_bounds(field)])


def _by_name(field: Schema) -> Schema | None:
    """Return what a mapping holds under names of the user's own; None for any other field."""
    values = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    return values[0] if isinstance(values[0], Mapping) and values[0] else None


def _references(field: Any) -> list[str]:
    """Return the names of the definitions that a field refers to, in order."""
    if isinstance(field, Mapping):
        own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
        inside = [v for k, v in field.items() if k not in ("discriminator", "default")]
        return list(dict.fromkeys([*own, *(n for value in inside for n in _references(value))]))
    if isinstance(field, list):
        return list(dict.fromkeys(name for one in field for name in _references(one)))
    return []


def _bounds(field: Schema) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    if bounds:
        yield ", ".join(bounds)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value or '""'
    return f"`{text}`".replace("|", "\\|") if len(text) <= 60 else "…"


def _prose(text: str) -> str:
    return re.sub(
        r"([<>*_])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)",
        r"\\\1",
        "\n".join(" ".join(p.split()) + "\n" for p in text.split("\n\n")).rstrip(),
    )


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "\\|")
