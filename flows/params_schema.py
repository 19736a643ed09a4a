"""The schema of params.yaml, derived from the signatures of the stages' functions."""

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from cohobate.params import ParamsError, nearest, validated
from cohobate.serving.route_settings import ServeRoute
from flows.applied_recipe import AppliedRecipe
from flows.recipes import DEFAULTS, PHASES
from flows.resources import Resources
from flows.round_settings import Rounds
from flows.tracking.trackers import TrackerName
from flows.upgrade import RENAMED
from tasks.signatures import Reads, reads_of, stage_function, stage_names

OPTIONAL = ("route", "track")
"""Sections that params.yaml need not have."""


def sections() -> dict[str, Any]:
    """Return the annotation of each top-level section of params.yaml."""
    reads = [r for stage in stage_names() for r in reads_of(stage_function(stage)).values()]
    found = {r.section: _whole(r) for r in reads if "." not in r.section}
    of_flows = {"resources": dict[str, Resources], "rounds": Rounds, "recipe": AppliedRecipe}
    of_flows |= {"route": ServeRoute, "track": tuple[TrackerName, ...]}
    return found | of_flows


def check(document: dict[str, Any]) -> None:
    """Refuse unknown sections and keys, wrong types and missing sections, with the nearest name.

    Raises:
        ParamsError: with one line for each mistake of the first section that has any.
        UserError: a phase or a teacher is named that does not exist.
    """
    from tasks.preflight.references import check_references

    known = sections()
    for name in document:
        if name in RENAMED:
            raise ParamsError(
                f"the section {name} is called {RENAMED[name]} in this version",
                where="params.yaml",
                fix="cohobate upgrade   (renames it, and all else that has a new name)",
            )
        if name not in known:
            raise ParamsError(
                f"{name} is not a known section{nearest(name, known)}",
                where="params.yaml",
                fix="cohobate params --schema",
            )
    for name in PHASES:
        if "method" not in (document.get(name) or {}).get(DEFAULTS, {"method": ""}):
            raise ParamsError(
                f"{name}.{DEFAULTS} is read in recipes alone: here each phase has its own keys",
                where="params.yaml",
                fix=f"write a recipe with {name}.{DEFAULTS}, then cohobate run --recipe FILE",
            )
    for name, annotation in known.items():
        if name in OPTIONAL and name not in document:
            continue
        if name not in document:
            raise ParamsError(f"the section {name} is missing", where="params.yaml")
        validated(annotation, document[name], name)
    check_references(document)


def partial_model() -> type[BaseModel]:
    """Return a model with all sections optional: the changes of a run to params.yaml."""
    fields: dict[str, Any] = {
        name: (_alternatives(kind) | None, None)
        for name, kind in sections().items()
        if name != "recipe"
    }
    strict = ConfigDict(frozen=True, extra="forbid")
    return create_model("Params", __config__=strict, **fields)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of params.yaml, for editors and for `cohobate params --schema`."""
    inputs = [(name, "validation", TypeAdapter(kind)) for name, kind in sections().items()]
    by_name, shared = TypeAdapter.json_schemas(inputs, title="params.yaml")  # type: ignore[arg-type]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: schema for (name, _), schema in by_name.items()},
        "required": sorted(sections().keys() - set(OPTIONAL)),
        **shared,
    }


def _alternatives(kind: Any) -> Any:
    """Return the classes that a section may be, side by side: Prefect's form names each."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _whole(reads: Reads) -> Any:
    return dict[str, reads.annotation] if reads.each else reads.annotation  # type: ignore[name-defined]
