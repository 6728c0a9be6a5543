"""Reading configurations: YAML files, inheritance, ``--set`` overrides, and all problems at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from normscape.config import Config, ConfigProblems, Section
from normscape.configdoc import describe, reference_markdown
from normscape.errors import ConfigError

__all__ = ["config_digest", "digest", "dump_yaml", "load_config", "reference_markdown", "section_digest", "validate_config"]

Problem = tuple[str, str]
"""(dotted path, message)"""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with a key that stands twice as an error instead of a silent last-one-wins."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in seen and key != "<<":
            problem = f"key `{key}` stands twice (first on line {seen[key]})"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen[key] = key_node.start_mark.line + 1
    loader.flatten_mapping(node)
    return {_key(loader.construct_object(k, deep=True)): loader.construct_object(v, deep=True) for k, v in node.value}


def _key(key: Hashable) -> str:
    """Keys are words; `no:` or `1:` would arrive as something else."""
    return key if isinstance(key, str) else str(key).lower()


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: A YAML file; a `base: other.yaml` entry inherits from another one.
        overrides: `a.b=c` changes, as given to `--set`, applied in order.

    Raises:
        ConfigError: With every problem found, one a line, as `dotted.path: message`.
    """
    data, problems = read_settings(Path(path), overrides)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems += _problems(error, data)
    if problems:
        fail(str(path), problems)
    return config


def validate_config(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """Validate a configuration that is already a mapping; errors read as those of `load_config`."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        fail(source, _problems(error, data))


def fail(source: str, problems: Sequence[Problem]) -> NoReturn:
    lines = list(dict.fromkeys(f"  {path}: {message}" if path else f"  {message}" for path, message in problems))
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise ConfigError("\n".join([f"{source}: {count}", *lines]))


# ---- files -----------------------------------------------------------------------------------------------------------


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[Problem]]:
    """A file, what it inherits from and the changes of `--set`, as plain data, and which changes cannot be made.

    Raises:
        ConfigError: a file cannot be read.
    """
    data = _read_file(path, ())
    problems: list[Problem] = []
    for text in overrides:
        try:
            _apply_override(data, text)
        except _OverrideError as error:
            problems.append((f"--set {text}", str(error)))
    return data, problems


def _read_file(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """One file and what it inherits from."""
    where = path.resolve()
    if where in children:
        chain = " -> ".join(str(p) for p in (*children[children.index(where) :], where))
        raise ConfigError(f"{path}: `base` goes in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        asked = f" (`base` of {children[-1]})" if children else ""
        hint = (
            "; configs/ holds some, `normscape init` writes one for your data"
            if isinstance(error, FileNotFoundError) and not children
            else ""
        )
        raise ConfigError(f"cannot read configuration {path}{asked}: {reason}{hint}") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: not valid YAML: {_yaml_reason(error)}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{path}: a configuration is a YAML mapping (`key: value` lines), found {found}")
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: must be the path of another configuration, found {base!r}")
    return _merge(_read_file(path.parent / base, (*children, where)), data)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _yaml_reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).strip()


def _merge(base: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """`child` over `base`: mappings key by key, lists replaced, `attributes` by name, where `drop: true` leaves one out."""
    merged = dict(base)
    for key, value in child.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        elif key == "attributes" and isinstance(old, list) and isinstance(value, list):
            merged[key] = _merge_named(old, value)
        else:
            merged[key] = value
    return merged


def _merge_named(base: list[Any], child: list[Any]) -> list[Any]:
    merged = list(base)
    index = {item["name"]: i for i, item in enumerate(base) if isinstance(item, dict) and "name" in item}
    for item in child:
        name = item.get("name") if isinstance(item, dict) else None
        if isinstance(name, str) and name in index:
            merged[index[name]] = None if item.get("drop") is True else _merge(merged[index[name]], item)
        else:
            merged.append(item)
    return [item for item in merged if item is not None]


# ---- overrides -------------------------------------------------------------------------------------------------------


class _OverrideError(ValueError):
    """A `--set` that cannot be applied."""


def _apply_override(data: dict[str, Any], text: str) -> None:
    """Apply one `a.b=c` to `data`, in place."""
    path, equals, written = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise _OverrideError("must look like section.key=value")
    try:
        value = yaml.load(written, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _OverrideError(f"the value is not valid YAML: {_yaml_reason(error)}") from error
    here: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            position = _position(here, key, ".".join(keys[:depth]))
            if last:
                here[position] = value
            here = here[position]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            elif here.get(key) is None:
                here[key] = {}
            here = here[key]
        else:
            raise _OverrideError(f"`{'.'.join(keys[:depth])}` is a single value ({here!r}), it has no `{key}`")


def _position(items: list[Any], key: str, path: str) -> int:
    """Index of a list's entry, given by number or by name."""
    names = [item.get("name") for item in items if isinstance(item, dict)]
    if key in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = f"the names {', '.join(map(str, names))} or " if names else ""
    raise _OverrideError(f"`{path}` has no entry `{key}`; it has {known}the positions 0 to {len(items) - 1}")


# ---- problems --------------------------------------------------------------------------------------------------------


def _problems(error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """Every problem as (dotted path, message), those across sections included."""
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        location = item["loc"]
        if cause is not None:
            continue  # a check of several fields; _check_valid_part reports it
        if item["type"] == "too_short" and _value_at(data, location):
            continue  # pydantic counts only the valid entries; the invalid ones are reported by themselves
        path = _display_path(location, data)
        model, field = _field_at(location)
        if item["type"] == "extra_forbidden":
            problems.append((path, _unknown_key(str(location[-1]), model)))
        elif item["type"] == "missing":
            problems.append((path, f"is required ({field})"))
        elif field:
            accepts = field.replace("number", "finite number", 1) if item["type"] == "finite_number" else field
            problems.append((path, f"must be {_article(accepts)}; found {_shown(item['input'])}"))
        else:
            problems.append((path, item["msg"]))
    known = {path for path, _ in problems}
    across: list[Problem] = []
    _check_valid_part(Config, data, "", across)
    problems += [(path, message) for path, message in across if path not in known]
    return problems or [("", str(error))]


def _check_valid_part(model: type[Any], data: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    """Run the checks that involve several fields on those fields that are valid.

    pydantic runs the checks of a model only when all its fields are valid, so that a person would meet the
    problems one batch after the other.

    Returns:
        The model with its valid fields; the others are at their defaults, or missing.
    """
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in data:
            continue
        annotation, value, target = field.annotation, data[name], f"{path}.{name}".lstrip(".")
        entry = get_args(annotation)[0] if get_origin(annotation) is tuple else None
        if _is_section(annotation) and isinstance(value, dict):
            values[name] = _check_valid_part(annotation, value, target, problems)
        elif _is_section(entry) and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            labels = [v["name"] if isinstance(v.get("name"), str) else str(i) for i, v in enumerate(value)]
            parts = zip(labels, value, strict=True)
            values[name] = tuple(_check_valid_part(entry, v, f"{target}.{label}", problems) for label, v in parts)  # type: ignore[arg-type]
        else:
            try:
                adapter: TypeAdapter[Any] = TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)
                values[name] = adapter.validate_python(value)
            except ValidationError:
                if isinstance(value, list):
                    values[name] = value  # its length may still be checked
    built = model.model_construct(**values)
    try:
        check = getattr(built, "_check", None)
        if check is not None:
            check()
    except ConfigProblems as error:
        problems += error.problems
    except ValueError as error:
        problems.append(_split_subject(path, str(error), model))
    except (AttributeError, TypeError, IndexError):
        pass  # a field that the check needs is itself wrong
    return built


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _unknown_key(key: str, model: type[Section] | None) -> str:
    names = list(model.model_fields) if model else []
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"unknown key; did you mean `{close[0]}`?" if close else f"unknown key; known here: {', '.join(names)}"


def _split_subject(path: str, message: str, model: type[Section] | None) -> Problem:
    """Move a field's name from the start of a validator's message into the path."""
    match = re.match(r"([a-z_]+(?:\.[a-z_]+)*)(?: \(([^)]*)\))? (.*)", message, flags=re.DOTALL)
    if model and match and match[1].split(".")[0] in model.model_fields:
        found = f"; found {match[2]}" if match[2] else ""
        return f"{path}.{match[1]}", match[3] + found
    return path, message


def _field_at(location: tuple[int | str, ...]) -> tuple[type[Section] | None, str]:
    """The model that holds (or is) the thing at `location`, and what that thing accepts, in words."""
    model: type[Section] | None = Config
    annotation: Any = Config
    metadata: Iterable[Any] = ()
    for key in location:
        if isinstance(key, int):
            annotation, metadata = get_args(annotation)[0], ()
        elif model is not None and key in model.model_fields:
            field = model.model_fields[key]
            annotation, metadata = field.annotation, field.metadata
        else:
            return model, ""
        if _is_section(annotation):
            model = annotation
    return model, describe(annotation, list(metadata))


def _article(text: str) -> str:
    single = re.match(r"(whole|finite|number|list|file|section)\b", text)
    return f"a {text}" if single else text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value_at(data: Any, location: tuple[int | str, ...]) -> Any:
    for key in location:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _display_path(location: tuple[int | str, ...], data: Any) -> str:
    """Dotted path, with the names of named entries instead of their positions."""
    parts: list[str] = []
    for depth, key in enumerate(location):
        entry = _value_at(data, location[: depth + 1])
        name = entry.get("name") if isinstance(key, int) and isinstance(entry, dict) else None
        parts.append(name if isinstance(name, str) else str(key))
    return ".".join(parts)


# ---- digests and writing ---------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """SHA-256, as hex, of JSON-like data in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def config_digest(config: Config) -> str:
    """Digest of a whole configuration; fields that hold their default do not count (see `section_digest`)."""
    return digest(config.model_dump(mode="json", exclude_defaults=True))


def section_digest(config: Config, sections: Sequence[str], omit: Sequence[str] = ()) -> str:
    """Digest of some top-level fields of a configuration.

    Fields that hold their default do not count, so that a field that a later version adds leaves finished work up to date. A
    default that changes is a change of the stage: raise its version.

    Args:
        config: The configuration.
        sections: Names of top-level fields (`data`, `image_size`).
        omit: `section.field` entries that are left out; in a list of sections, of each of them.
    """
    dumped = config.model_dump(mode="json", include=set(sections), exclude_defaults=True)
    for path in omit:
        section, _, field = path.partition(".")
        found = dumped.get(section, {})
        for item in found if isinstance(found, list) else [found]:
            item.pop(field, None)
    return digest({name: value for name, value in dumped.items() if value != {}})  # as if nothing had been said there


def dump_yaml(config: Config) -> str:
    """The configuration as YAML, all defaults written out; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
