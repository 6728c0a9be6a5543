"""Project images with a pool of actors on a Ray cluster, and stop there; what projection needs is trained first.

    ray job submit --working-dir . -- python jobs/project.py OPTIONS
    OPTIONS: --config configs/chairs/gpu.yaml --actors 1-8 --runs-dir /shared/runs

The same code and options as `normscape run --to project`. A job that was lost projects only what is missing.
"""

from normscape.cli import job

if __name__ == "__main__":
    job("--workers", "1", "--actors", "1", "--to", "project")
