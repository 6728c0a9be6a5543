"""Detectors compared on the same images, by subject: roles, the locked test, units of work, measures (docs/evaluation.md)."""
