"""Run an experiment on a Ray cluster, from its data to its page.

    ray job submit --working-dir . -- python jobs/run.py OPTIONS
    OPTIONS: --config configs/chairs/demo.yaml --workers 2 --actors 1-8 --runs-dir /shared/runs

The same code and options as `normscape run`; one worker and one actor where nothing else is asked for. What is up to date is
skipped and what was cut off goes on: a job that was lost is submitted again as it was.
"""

from normscape.cli import job

if __name__ == "__main__":
    job("--workers", "1", "--actors", "1")
