"""Where the learned atlas starts: at what a regression finds in the training patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.networks.generator import Generator
from normscape.networks.values import centred_value
from normscape.training.atlas import start_atlas

Make = Callable[..., Config]
MakeSamples = Callable[..., SampleSet]


@dataclass(frozen=True)
class Windows:
    """Patches that are windows of a known volume, whose second channel comes with age; the lower half of each counts."""

    brain: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one patch."""
        return tuple(self.brain.shape[1:])

    def __len__(self) -> int:
        return len(self.brain)

    def draw(self, rows: torch.Tensor, random: torch.Generator | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Patches (B, 1, *S), nonsense outside of the mask."""
        return torch.where(self.masks(rows), self.brain[rows], 0.9), {}

    def masks(self, rows: torch.Tensor) -> torch.Tensor:
        """Bool (B, 1, *S)."""
        mask = torch.zeros(len(rows), *self.shape, dtype=torch.bool)
        mask[:, :, :4] = True
        return mask


def test_mean_and_slope_are_found_where_patches_lie(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """Patches cut from a volume that changes with age give the volume and its change back; other channels are zero."""
    config, samples = toy_brain_config(generator={"atlas_channels": 3}, data={"spacing_mm": 20.0}), toy_brain_samples()
    torch.manual_seed(0)
    generator = Generator.from_config(config)
    assert generator.atlas is not None
    atlas, count = generator.atlas, 2000
    truth = 0.3 * torch.randn(2, *atlas.volume.shape[1:])
    age, position = 20 + 60 * torch.rand(count, 1), torch.randint(-4, 5, (count, 3)) * 20.0
    windows = atlas.window(centred_value(config.attributes[2], position), truth)
    share = centred_value(config.attributes[1], age)[:, :, None, None, None]
    patches = replace(
        samples,
        images=Windows((windows[:, :1] + share * windows[:, 1:]).detach()),
        subject=torch.zeros(count, dtype=torch.int64),
        values={"age_years": age, "position_mm": position},
        sample_id=torch.arange(count),
    )
    start_atlas(atlas, patches, config)
    seen = atlas.volume[2].new_zeros(atlas.volume.shape[1:], dtype=torch.bool)
    seen[4:8, 4:12, 4:12] = True  # in the middle of the places, in the half that counts: many patches lie there
    assert (atlas.volume[:2] - truth)[:, seen].abs().mean() < 0.05
    assert atlas.volume[2].abs().max() == 0
    torch.testing.assert_close(atlas.to_image.weight[:, :2] * atlas.to_image.weight_gain, torch.ones(1, 2, 1, 1, 1))


def test_a_place_without_patches_gets_the_mean_of_all(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """No slope, and nothing but finite numbers."""
    config, samples = toy_brain_config(), toy_brain_samples()
    generator = Generator.from_config(config)
    assert generator.atlas is not None
    start_atlas(generator.atlas, samples, config)
    corner = generator.atlas.volume[:, 0, 0, 0]
    images, _ = samples.draw(torch.arange(len(samples)))
    masks = samples.masks(torch.arange(len(samples)))
    assert masks is not None
    assert generator.atlas.volume.isfinite().all()
    torch.testing.assert_close(corner[0], images[masks].mean(), atol=0.02, rtol=0)
    assert corner[1].abs() < 1e-6
