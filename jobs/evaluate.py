"""Compare detectors on a Ray cluster.

    ray job submit --working-dir . -- python jobs/evaluate.py OPTIONS
    OPTIONS: --config configs/brain/cpu.yaml --workers 8 --runs-dir /shared/runs

The same code and options as `normscape evaluate`; two units at a time where nothing else is asked for. The experiment has to be
finished in that folder as far as the detectors read it. A job that was lost is submitted again as it was.
"""

import sys

from normscape.cli import main

if __name__ == "__main__":
    given = [word.removeprefix("--config=") for word in sys.argv[1:] if word != "--config"]
    main(["evaluate", "--workers", "2", *given])
