"""Errors a person can fix: shown as one clear message, without a stack trace, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the program was given; the text says what to change."""


class ConfigError(UserError):
    """A configuration that cannot be used."""


class DataError(UserError):
    """A file or data set that is not what was expected."""


class CheckpointError(UserError):
    """A checkpoint that is damaged or belongs to another configuration."""
