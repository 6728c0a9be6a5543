"""Which version is the champion: it changes only when a challenger is better on the locked test, beyond doubt.

This is the one place that chooses anything by test subjects. It chooses between finished systems; nothing is fitted here.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.errors import UserError
from normscape.scoring.metrics import Interval, auroc, bootstrap_by_subject, resample_counts
from normscape.tracking.package import TEST_SCORES
from normscape.tracking.registry import CHALLENGER, CHAMPION, with_store
from normscape.tracking.store import active_store, open_client, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESAMPLES = 2000
SEED = 20
_BLOCK = 250
DECISION_TAG = "normscape.promotion"


class PromotionRefused(UserError):
    """The champion stays; the text says why."""


@dataclass(frozen=True)
class TestScores:
    """Anomaly scores of one version's test images: label `(N,)`, score `(N,)`, subject `(N,)`."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    label: NDArray[np.int64]
    score: NDArray[np.float64]
    subject: NDArray[np.str_]

    @classmethod
    def read(cls, path: Path) -> TestScores:
        """From the file that lies beside a registered system."""
        table = pq.read_table(path)
        subject = np.asarray(table["subject"].to_pylist(), dtype=np.str_)
        return cls(table["label"].to_numpy().astype(np.int64), table["anomaly_score"].to_numpy(), subject)


@dataclass(frozen=True)
class Comparison:
    """Whether a challenger is better, and how that was found."""

    better: bool
    reason: str


def compare(challenger: TestScores, champion: TestScores, *, resamples: int = RESAMPLES, seed: int = SEED) -> Comparison:
    """Whether the challenger's AUROC on the test is higher, beyond doubt.

    On the same test subjects: subjects are resampled with replacement, both versions are measured on each draw, and the 95 %
    interval of the difference must lie above 0. On other subjects the two cannot be paired: the challenger's own 95 % interval
    must lie above the champion's.

    Args:
        challenger: scores of the new version.
        champion: scores of the old one.
        resamples: of the bootstrap.
        seed: of the resampling.
    """
    if set(challenger.subject.tolist()) == set(champion.subject.tolist()):
        return _paired(challenger, champion, resamples, seed)
    new, old = (_interval(scores, resamples, seed) for scores in (challenger, champion))
    how = f"AUROC {_shown(new)} against {_shown(old)}, on different test subjects, so the intervals must not overlap"
    return Comparison(bool(new.low > old.high), how)


def _paired(challenger: TestScores, champion: TestScores, resamples: int, seed: int) -> Comparison:
    subjects = len(np.unique(challenger.subject))
    new, old = (_interval(scores, resamples, seed) for scores in (challenger, champion))
    counts = resample_counts(subjects, resamples, seed)
    drawn = [
        _measure(challenger, counts[i : i + _BLOCK]) - _measure(champion, counts[i : i + _BLOCK])
        for i in range(0, resamples, _BLOCK)
    ]
    differences = np.concatenate(drawn)
    valid = differences[np.isfinite(differences)]
    if subjects < 2 or not len(valid):
        return Comparison(
            False, f"AUROC {new.value:.3f} against {old.value:.3f}, but {subjects} test subject(s) give no interval"
        )
    low, high = np.percentile(valid, [2.5, 97.5])
    how = (
        f"AUROC {_shown(new)} against {_shown(old)}; difference {new.value - old.value:+.3f} "
        f"(95 % {low:+.3f} to {high:+.3f}, {subjects} subjects in pairs)"
    )
    return Comparison(bool(low > 0.0), how)


def _measure(scores: TestScores, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """AUROC of each draw of subjects `(R, subjects)`."""
    owner = np.unique(scores.subject, return_inverse=True)[1]
    return auroc(scores.label, scores.score, counts[:, owner])


def _interval(scores: TestScores, resamples: int, seed: int) -> Interval:
    return bootstrap_by_subject(auroc, scores.label, scores.score, scores.subject, n=resamples, seed=seed)


def _shown(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.3f} (no interval)"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def promote(model: str, tracking_uri: str) -> str:
    """Make the challenger the champion, if it is better on the locked test.

    The first challenger of a model that has no champion becomes it without a comparison. A decision is kept as the tag
    `normscape.promotion` of the challenger's version.

    Args:
        model: name in the registry.
        tracking_uri: the store.

    Returns:
        What was done.

    Raises:
        PromotionRefused: the champion stays; the text says why.
        UserError: there is no such model or no challenger, or the store cannot be used.
    """
    return with_store(tracking_uri, lambda: _promote(open_client(tracking_uri), model, tracking_uri))


def _promote(client: MlflowClient, model: str, uri: str) -> str:
    aliases = _aliases(client, model, uri)
    if CHALLENGER not in aliases:
        has = f"; version {aliases[CHAMPION]} is the champion" if CHAMPION in aliases else ""
        raise PromotionRefused(f"{model}: there is no challenger{has}. Register a run first: normscape register RUN")
    challenger, champion = aliases[CHALLENGER], aliases.get(CHAMPION)
    if champion == challenger:
        raise PromotionRefused(f"{model}: version {champion} is the champion already")
    if champion is None:
        said = f"version {challenger} is the champion now; there was none, so it was compared with nothing"
    else:
        found = compare(_test_scores(model, challenger, uri), _test_scores(model, champion, uri))
        if not found.better:
            said = f"version {champion} stays champion; version {challenger} is not better beyond doubt: {found.reason}"
            client.set_model_version_tag(model, challenger, DECISION_TAG, said)
            raise PromotionRefused(f"{model}: {said}")
        said = f"version {challenger} is the champion now, in place of version {champion}: {found.reason}"
    client.set_model_version_tag(model, challenger, DECISION_TAG, said)
    client.set_registered_model_alias(model, CHAMPION, challenger)
    client.delete_registered_model_alias(model, CHALLENGER)
    return f"{model}: {said}"


def _aliases(client: MlflowClient, model: str, uri: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(sorted(found.name for found in client.search_registered_models())) or "none"
        raise UserError(f"{model}: no such model in MLflow at {without_password(uri)}; there are: {known}") from error


def _test_scores(model: str, version: str, uri: str) -> TestScores:
    """Test scores of a version, as they were registered with it."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder, active_store(uri):
        where = f"models:/{model}/{version}/artifacts/{TEST_SCORES}"
        return TestScores.read(Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=folder)))
