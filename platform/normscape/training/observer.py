"""What to look at while the GAN trains: sample grids on fixed latents, Frechet and kernel distances."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from normscape.config import Config
from normscape.datasets.samples import SampleSet, to_uint8
from normscape.images import image_grid, save_png
from normscape.losses.contrastive import pair_latents
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.generator import Generator, draw_latents
from normscape.training.seeding import seeded

GRID_ROWS, GRID_COLUMNS = 4, 8
MOST_VOXELS = 6_291_456
"""Places of the images that are generated at once: 1536 of 64x64 or 16x16x16, and 192 of 32x32x32."""


class PooledFeatures(nn.Module):
    """The identity network's last feature map, averaged over space: `(B, C, *S)` to `(B, F)`."""

    def __init__(self, network: AuxiliaryNetwork) -> None:
        super().__init__()
        self.network = network
        self.num_features = int(network.net.fc.in_features)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features of images in [-1, 1]."""
        return self.network.features(images)[-1].flatten(2).mean(2)


class GanObserver:
    """Measures the averaged generator against the training images.

    The distances use the frozen identity network's features, not Inception's, so they are no FID or KID and
    compare only runs with the same auxiliary network.

    Args:
        config: the experiment.
        samples: training images.
        auxiliaries: attribute name to frozen network; the first attribute is the identity.
        folder: receives `samples/step-*.png`.
        device: where to compute.
    """

    def __init__(
        self,
        config: Config,
        samples: SampleSet,
        auxiliaries: Mapping[str, AuxiliaryNetwork],
        *,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config, self.samples, self.folder, self.device = config, samples, folder / "samples", device
        self.features = PooledFeatures(auxiliaries[config.attributes[0].name])

    @torch.no_grad()
    def save_grid(self, generator: Generator, step: int) -> None:
        """Write a grid of generated images; each row shares its identity sub-vector."""
        z = draw_latents(GRID_ROWS * GRID_COLUMNS, generator, seeded(self.config.seed, "grid"))
        identity = generator.subspace_slice(self.config.attributes[0].name)
        rows = z.reshape(GRID_ROWS, GRID_COLUMNS, -1)
        rows[..., identity] = rows[:, :1, identity]
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(image_grid(to_uint8(generator(z).cpu()), columns=GRID_COLUMNS), self.folder / f"step-{step:06d}.png")

    @torch.no_grad()
    def distances(self, generator: Generator, batch_size: int = 256) -> dict[str, float]:
        """Frechet and kernel (polynomial MMD) distance between generated images and training images as the GAN sees them."""
        count = self.config.gan.quality_samples
        # only here: a step of training needs no torchmetrics
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        frechet = FrechetInceptionDistance(feature=self.features, reset_real_features=False, sync_on_compute=False).to(
            self.device
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it keeps all features: a few thousand short vectors
            kernel = KernelInceptionDistance(
                feature=self.features, subsets=20, subset_size=min(500, count), sync_on_compute=False
            ).to(self.device)
        random = seeded(self.config.seed, "quality")
        index = torch.randint(len(self.samples), (count,), generator=random)
        z = draw_latents(count, generator, random)
        for real_part, z_part in zip(index.split(batch_size), z.split(batch_size), strict=True):
            for images, real in ((self.samples.batch(real_part, random).to(self.device), True), (generator(z_part), False)):
                frechet.update(images, real=real)
                kernel.update(images, real=real)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)  # the kernel distance draws its subsets from the global generator
            return {"frechet": frechet.compute().item(), "kernel": kernel.compute()[0].item()}


@torch.no_grad()
def generated_triplets(
    generator: Generator, network: AuxiliaryNetwork, *, triplets: int, seed: int, batch_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings `(T, D)` of anchors, positives that share only the identity sub-vector, and negatives (table III)."""
    random = seeded(seed, "generated triplets")
    width = next(iter(generator.subspaces.values()))
    parts = []
    for start in range(0, triplets, batch_size):
        count = min(batch_size, triplets - start)
        pairs = pair_latents(draw_latents(2 * count, generator, random), [width])
        negatives = draw_latents(count, generator, random)
        together = torch.cat([pairs[0::2], pairs[1::2], negatives])
        side = generator.resolutions[-1]
        rows = max(1, MOST_VOXELS // side**generator.dims)
        seen = torch.cat([network(generator(z)) for z in together.split(rows)])
        parts.append(seen.cpu().chunk(3))
    anchor, positive, negative = (torch.cat(column) for column in zip(*parts, strict=True))
    return anchor, positive, negative
