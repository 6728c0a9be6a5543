"""Scoring: features, detectors, thresholds, metrics with intervals."""
