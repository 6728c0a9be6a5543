"""What all cases share: timing of one configuration's actions, networks with random weights, images of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.benchmark.results import Ratio, Results, Row
from normscape.benchmark.timing import Action, Timing, measure
from normscape.benchmark.work import count_operations
from normscape.config import Config
from normscape.datasets.samples import SampleSet, StoredImages
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.training.seeding import seeded

FAST, REFERENCE = "fast", "reference"
LONGEST_SECONDS = 300.0
"""What would take longer once is left out, and said to be."""


class Skipped(Exception):
    """A case that cannot be measured here; the text says why."""

    @classmethod
    def without(cls, error: ImportError) -> Skipped:
        """Because a package is not installed."""
        return cls(f"{(error.name or 'a package').partition('.')[0]} is not installed")


@dataclass(frozen=True)
class Bench:
    """One configuration's measurements.

    Attributes:
        config: the experiment.
        device: where to compute.
        repeats: measurements of each action.
        results: receives rows and ratios.
        product_rate: operations a second of a large matrix product, measured before; None leaves shares out.
    """

    config: Config
    device: torch.device
    repeats: int
    results: Results
    product_rate: float | None = None

    def compare(self, case: str, batch: int, actions: Mapping[str, Action]) -> Row:
        """Time an action, and its reference form where there is one; count the work of the action; keep and return the row."""
        timings = measure(actions, device=self.device, repeats=self.repeats)
        return self.keep(case, batch, timings[FAST], timings.get(REFERENCE), count_operations(actions[FAST]))

    def keep(
        self, case: str, batch: int, timing: Timing, reference: Timing | None = None, operations: float | None = None
    ) -> Row:
        """Add a row to the results; an action without any counted operation, such as rendering, has no work."""
        row = Row(self.config.name, case, batch, timing, reference, operations or None, self.product_rate)
        self.results.rows.append(row)
        return row

    def ratio(self, name: str, value: float) -> None:
        """Add a ratio to the results."""
        self.results.ratios.append(Ratio.of(self.config, name, value, self.device))

    def note(self, **facts: float) -> None:
        """Add facts of the configuration to the results, see `normscape.benchmark.facts`."""
        self.results.facts.setdefault(self.config.name, {}).update(facts)

    def auxiliaries(self, *, fold: bool = True) -> dict[str, AuxiliaryNetwork]:
        """Frozen auxiliary networks with random weights, in inference form unless told otherwise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = {a.name: AuxiliaryNetwork.from_config(a, self.config).to(self.device) for a in self.config.attributes}
        for network in networks.values():
            if fold:
                network.fold()
            else:
                freeze(network)
        return networks

    def samples(self, count: int) -> SampleSet:
        """Images of noise: uint8 `(count, C, *S)`."""
        config = self.config
        shape = (count, config.image_channels, *(config.image_size,) * config.dims)
        images = torch.randint(0, 256, shape, generator=seeded(0, "benchmark"), dtype=torch.uint8)
        values = {a.column or "": self.values(count)[a.name] for a in config.value_attributes}
        return SampleSet(StoredImages(images), torch.zeros(count, dtype=torch.long), ("noise",), values, torch.arange(count))

    def values(self, count: int) -> dict[str, Tensor]:
        """Value attribute to random conditions `(count, D)` in its range."""
        return {
            a.name: torch.empty(count, a.output_dim).uniform_(a.value_min, a.value_max, generator=seeded(0, a.name))
            for a in self.config.value_attributes
        }

    def masks(self, count: int) -> Tensor | None:
        """Three quarters of each brain patch, `(count, 1, *S)`; None for images without masks."""
        config = self.config
        if config.data.source != "brain":
            return None
        masks = torch.ones(count, 1, *(config.image_size,) * config.dims, dtype=torch.bool, device=self.device)
        masks[..., : config.image_size // 4] = False
        return masks
