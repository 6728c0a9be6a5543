"""Train the auxiliary networks and the GAN on a Ray cluster, and stop there.

    ray job submit --working-dir . -- python jobs/train_gan.py OPTIONS
    OPTIONS: --config configs/chairs/gpu.yaml --workers 1-8 --runs-dir /shared/runs

The same code and options as `normscape run --to gan`.
"""

from normscape.cli import job

if __name__ == "__main__":
    job("--workers", "1", "--to", "gan")
