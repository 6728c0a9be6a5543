"""How many workers there are, what each is given, and how many of them can share a configuration's batches."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ray

from normscape.config import Config
from normscape.distributed.cluster import gpus_each
from normscape.errors import UserError
from normscape.training.auxiliary import batch_share
from normscape.training.communicator import Communicator, share


@dataclass(frozen=True)
class Workers:
    """The workers of a training.

    Args:
        least: training waits for as many.
        most: and takes no more. Where it is more than `least`, the training is elastic: it goes on with what is there when
            machines leave, and takes on those that come.
        gpus: GPUs of each; empty: one where the configuration allows it and the cluster has some.
        cpus: CPUs of each, and threads where there is no GPU.
        max_failures: a training that fails more often gives up; machines that are taken away do not count.
    """

    least: int = 1
    most: int = 1
    gpus: float | None = None
    cpus: int = 1
    max_failures: int = 3

    @property
    def count(self) -> str:
        """For people: `2` or `1-8`."""
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def gpus_each(self, config: Config) -> float:
        """GPUs of each worker under a configuration, in the cluster that this process is connected to."""
        return gpus_each(config, self.least) if self.gpus is None else self.gpus


def parse_count(text: str, option: str) -> tuple[int, int]:
    """`2` or `1-8` to the least and the most.

    Raises:
        UserError: it is neither.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise UserError(f"{option} {text}: expected a number or a range, for example 2 or 1-8")
    return least, most


def check_room(config: Config, workers: Workers, *, own: bool) -> None:
    """Whether the cluster has what the workers need.

    A Ray of our own never grows: it lacks them for good. A cluster may grow: a line on stderr says what it waits for.

    Raises:
        UserError: a Ray of our own lacks them.
    """
    there, gpus = ray.cluster_resources(), workers.gpus_each(config)
    needed = {"CPU": float(workers.cpus * workers.least), "GPU": gpus * workers.least}
    lacking = [
        f"{count:g} {name}s ({there.get(name, 0):g} there)" for name, count in needed.items() if count > there.get(name, 0)
    ]
    if not lacking:
        return
    text = f"{workers.least} workers need {' and '.join(lacking)}"
    if own:
        raise UserError(f"{text}; ask for fewer workers, `--gpus-per-worker 0`, or a cluster (`--address`)")
    sys.stderr.write(f"{text}; waiting for the cluster to grow\n")


def check_batch(config: Config, workers: Workers) -> None:
    """Whether the workers can share the batches of GAN training.

    An elastic training needs this for its least number only: of others, those that are too many stand by.

    Raises:
        UserError: they cannot.
    """
    if sharing("gan", config, workers.least) == workers.least:
        return
    batch, group = config.gan.batch_size, config.discriminator.deviation_group
    able = [str(n) for n in range(1, batch + 1) if sharing("gan", config, n) == n]
    shrunk = f", and its 1/{config.gan.path_length_batch_shrink} (gan.path_length_batch_shrink)," if _path_length(config) else ""
    raise UserError(
        f"gan.batch_size {batch} in groups of {group} (discriminator.deviation_group){shrunk} cannot be shared out evenly among "
        f"{workers.least} workers; {', '.join(able)} can"
    )


def sharing(stage: str, config: Config, size: int) -> int:
    """The most of `size` workers that can share every batch of stage `gan` or `auxiliary`."""
    fits = _gan_fits if stage == "gan" else _auxiliary_fits
    return next((n for n in range(size, 1, -1) if fits(config, n)), 1)


class _Rank0(Communicator):
    """Rank 0 of some workers that are not there."""

    def __init__(self, size: int) -> None:
        self.size = size


def _gan_fits(config: Config, size: int) -> bool:
    place, batch = _Rank0(size), config.gan.batch_size
    fits = _works(lambda: share(batch, config.discriminator.deviation_group, place))
    return fits and (not _path_length(config) or _works(lambda: share(batch // config.gan.path_length_batch_shrink, 1, place)))


def _path_length(config: Config) -> bool:
    return config.gan.path_length_weight > 0


def _auxiliary_fits(config: Config, size: int) -> bool:
    place = _Rank0(size)
    return all(_works(partial(batch_share, attribute, place)) for attribute in config.attributes)


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except ValueError:
        return False
    return True
