"""Search settings on a cluster: `ray job submit --working-dir . -- python jobs/sweep.py --config configs/sweeps/forest.yaml`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from normscape.cli_sweep import sweep_and_report
from normscape.errors import UserError


def main() -> int:
    """Read the arguments and run the sweep; the same code as `normscape sweep`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a sweep, configs/sweeps/*.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a value; may be repeated")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are; on a cluster, shared by all nodes")
    parser.add_argument("--address", help="of the Ray cluster (default: that of this job, or a Ray of our own)")
    parser.add_argument("--no-track", action="store_true", help="do not record the sweep in MLflow")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    given = parser.parse_args()
    try:
        sweep_and_report(
            given.config,
            given.set,
            runs_dir=given.runs_dir,
            address=given.address,
            track=not given.no_track,
            retry_failed=given.retry_failed,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
