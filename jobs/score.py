"""Score what was projected, on a Ray cluster, and stop there; what scoring needs is made first.

    ray job submit --working-dir . -- python jobs/score.py OPTIONS
    OPTIONS: --config configs/chairs/gpu.yaml --runs-dir /shared/runs

The same code and options as `normscape run --to score`; add `--from score` to score anew.
"""

from normscape.cli import job

if __name__ == "__main__":
    job("--workers", "1", "--actors", "1", "--to", "score")
