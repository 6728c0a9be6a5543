"""Detectors and anomaly families by name: built-in ones, and those of users, which are imported by `module:Class`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from normscape.config import PluginConfig
from normscape.errors import ConfigError


def build(entry: PluginConfig, builtin: Mapping[str, str], *, kind: str) -> Any:
    """Make what a configuration entry names.

    Args:
        entry: its name, class and settings.
        builtin: name to `module:Class`; nothing is imported before it is asked for.
        kind: what it is, for the message of an error: `detector` or `anomaly family`.

    Raises:
        ConfigError: there is no such thing, or it does not take these settings.
    """
    asked = entry.use or entry.name
    path = asked if ":" in asked else builtin.get(asked)
    if path is None:
        close = difflib.get_close_matches(asked, builtin, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"{kind} `{asked}` is unknown{hint}; known are {', '.join(sorted(builtin))}, and module:Class of your own"
        )
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} `{entry.name}`: {path} cannot be imported ({error})") from error
    try:
        return found(**entry.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} `{entry.name}`: {path} does not take these settings ({error})") from error
