"""What a field accepts, in words: the source of error messages and of the reference page."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from normscape.config import Config

_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "file path"}
_PLURAL = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}

INTRODUCTION = """\
<!-- Written by `normscape config reference > docs/configuration.md`; change normscape/config instead. -->
# Configuration

One YAML file describes one experiment. `normscape config check FILE` names every problem in it,
`normscape config show FILE` prints it with all defaults filled in.

- `--set a.b=c` changes one value from the command line; the value is read as YAML. Entries of lists are
  addressed by position (`attributes.0.tau_same=0.1`) or, where they have a name, by name
  (`attributes.identity.tau_same=0.1`). The option can be given several times.
- `base: other.yaml` at the top of a file inherits from another file, found relative to this one. Sections are
  merged key by key, lists are replaced; only `attributes` is merged entry by entry, by name, and
  `{name: position, drop: true}` leaves one out.
"""


def describe(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """What values a type accepts, in words (`whole number, at least 1`).

    Args:
        annotation: A type as it stands in a model.
        metadata: Its constraints, where pydantic keeps them apart.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        found: list[Any] = []
        for item in extra:
            found += item.metadata if isinstance(item, FieldInfo) else [item]
        return describe(inner, [*found, *metadata])
    if origin in (Union, types.UnionType):
        inner_types = [a for a in get_args(annotation) if a is not type(None)]
        return " or ".join([*(describe(a, metadata) for a in inner_types), "empty"])
    if origin is Literal:
        choices = [str(a) for a in get_args(annotation)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if origin in (tuple, list):
        inner = describe(get_args(annotation)[0])
        kind, _, rest = inner.partition(", ")
        text = f"list of {_PLURAL.get(kind, kind)}" + (f", each {rest}" if rest else "")
        least = next((m.min_length for m in metadata if getattr(m, "min_length", None)), None)
        return f"{text}, at least {least} of them" if least else text
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return ", ".join([_PLAIN.get(annotation, str(annotation)), *_limits(metadata)])


def _limits(metadata: tuple[Any, ...] | list[Any]) -> list[str]:
    """Ranges and patterns, in words."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "pattern"):
            if getattr(item, name, None) is not None:
                bounds[name] = getattr(item, name)
    words = {k: f"{v:g}" for k, v in bounds.items() if k != "pattern"}
    out = []
    if "ge" in words and "le" in words:
        out.append(f"from {words['ge']} to {words['le']}")
    else:
        low = f"at least {words['ge']}" if "ge" in words else f"above {words['gt']}" if "gt" in words else ""
        high = f"at most {words['le']}" if "le" in words else f"below {words['lt']}" if "lt" in words else ""
        if low or high:
            out.append(" and ".join(filter(None, (low, high))))
    if "pattern" in bounds:
        out.append(f"matching `{bounds['pattern']}`")
    return out


def reference_markdown() -> str:
    """The reference page: every section, field, type, default, range and meaning, from the models themselves."""
    lines = [INTRODUCTION]
    pending: list[tuple[str, type[BaseModel]]] = [("", Config)]
    seen: set[str] = set()
    while pending:
        path, model = pending.pop(0)
        lines += [f"## {f'`{path}`' if path else 'Top level'}", "", (model.__doc__ or "").strip(), ""]
        lines += ["| key | accepts | default | meaning |", "|---|---|---|---|"]
        nested: list[tuple[str, type[BaseModel]]] = []
        for name, field in model.model_fields.items():
            child, is_list = _section_of(field.annotation)
            target = f"{path}.{name}" if path else name
            if child is not None and target not in seen:
                seen.add(target)
                nested.append((f"{target}[]" if is_list else target, child))
            accepts = "list of sections" if child is not None and is_list else describe(field.annotation, field.metadata)
            cells = [f"`{name}`", _escape(accepts), _default(field, child), _escape(field.description or "")]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        pending = nested + pending
    return "\n".join(lines).rstrip() + "\n"


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model behind a field, and whether the field is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) in (tuple, list):
        return _section_of(get_args(annotation)[0])[0], True
    return None, False


def _default(field: FieldInfo, child: type[BaseModel] | None) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "**required**"
    if child is not None:
        return "see below"
    if field.default is None or field.default == "":
        return "empty"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value if isinstance(value, str) else json.dumps(value, default=str)}`"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
