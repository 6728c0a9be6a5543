"""Pairs of detectors on the same images: the difference of their areas, with its interval, on the same resamples.

Every detector is compared with the reference (`evaluation.reference`) and with the best baseline of each kind: the best that sees
no anomaly while it is fitted, and the best that learns from synthetic ones. Which baseline is best was decided on synthetic
validation; the locked test has no say in it. A baseline is what `evaluation.own` does not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from normscape.evaluation.measures import Rows, plain
from normscape.evaluation.scorebook import ALL, Estimate

PAIRED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("detector", "against", "why", "family")]
    + [(name, pa.float64()) for name in ("difference", "low", "high", "spread")]
)
"""Rows of `paired.parquet`: AUROC of the detector minus that of the other, on the locked test."""
REFERENCE = "reference"
BEST = {"none": "best baseline without anomalies", "synthetic": "best baseline with synthetic anomalies"}

Areas = Mapping[str, Mapping[str, Estimate]]


def best_baselines(validation: Areas, supervision: Mapping[str, str], own: Sequence[str]) -> dict[str, str]:
    """The best baseline of each kind of supervision, by its mean area over all families on synthetic validation.

    Args:
        validation: areas on synthetic validation, detector to family to estimate.
        supervision: of each detector.
        own: detectors that are no baselines.
    """
    found = {}
    for kind in BEST:
        names = [name for name in validation if supervision[name] == kind and name not in own and ALL in validation[name]]
        if names:
            found[kind] = max(names, key=lambda name: validation[name][ALL].value)
    return found


def paired_rows(test: Areas, reference: str | None, best: Mapping[str, str]) -> Rows:
    """Rows of `paired.parquet`.

    Args:
        test: areas on the locked test.
        reference: a detector; None where it failed.
        best: what `best_baselines` gave.
    """
    others = [(REFERENCE, reference)] if reference in test else []
    others += [(BEST[kind], name) for kind, name in best.items() if name in test]
    rows: Rows = []
    for why, other in others:
        assert other is not None
        for detector in test:
            if detector == other:
                continue
            for family, estimate in test[detector].items():
                difference = estimate.minus(test[other][family])
                low, high = difference.interval
                numbers = {"difference": difference.value, "low": low, "high": high, "spread": difference.spread}
                rows.append({"detector": detector, "against": other, "why": why, "family": family} | plain(numbers))
    return rows
