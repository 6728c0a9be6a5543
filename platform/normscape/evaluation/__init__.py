"""Evaluation: detectors compared on the same images, by subject."""
