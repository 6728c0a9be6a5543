"""Diffusion: noise an image half-way, denoise it, and what comes back is normal (AnoDDPM, Wyatt et al. 2022)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from monai.networks.layers.factories import Conv
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, DownBlock, UpBlock, get_timestep_embedding
from monai.networks.schedulers.ddim import DDIMScheduler
from torch import Tensor, nn

from normscape.baselines import Training
from normscape.baselines.learning import (
    Course,
    Inputs,
    Seen,
    Step,
    check_choice,
    check_positive,
    fresh_weights,
    minimise,
)
from normscape.baselines.networks import fold_blocks, unfold_blocks
from normscape.baselines.noise import pyramid_noise
from normscape.baselines.rebuilding import ResidualDetector, ResidualScore
from normscape.losses.reconstruction import pixel_residual
from normscape.training.seeding import seeded

WIDTH = {2: 32, 3: 16}
"""Channels of the finest stage by dimension, unless set."""
TIMES = 1000
"""Steps of the whole diffusion, of which only the first `noised` are used."""
GROUPS = 8
"""Of the group normalisation; `width` is a multiple."""
PERSISTENCE = 0.8
"""Of the noise's finer parts, as in AnoDDPM."""

NoiseKind = Literal["pyramid", "gaussian"]
"""Coarse and fine noise together, which hides anomalies of several pixels, or white noise."""


class TimedUNet(nn.Module):
    """MONAI's diffusion U-Net at two resolutions, less the attention, for which MONAI needs a package more.

    Args:
        dims: 2 or 3.
        channels: of what it sees and says.
        width: channels of the finer resolution; the coarser one has twice as many.
    """

    def __init__(self, dims: int, channels: int, *, width: int) -> None:
        super().__init__()
        deep, self.width = 2 * width, width
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        convolution = Conv[Conv.CONV, dims]
        self.first = convolution(channels, width, 3, padding=1)
        shared = {"spatial_dims": dims, "temb_channels": 4 * width, "norm_num_groups": GROUPS}
        self.fine = DownBlock(in_channels=width, out_channels=width, **shared)
        self.coarse = DownBlock(in_channels=width, out_channels=deep, add_downsample=False, **shared)
        self.middle = DiffusionUNetResnetBlock(in_channels=deep, **shared)
        self.from_coarse = UpBlock(
            in_channels=width, prev_output_channel=deep, out_channels=deep, num_res_blocks=2, **shared
        )  # fmt: skip
        self.from_fine = UpBlock(
            in_channels=width, prev_output_channel=deep, out_channels=width, num_res_blocks=2, add_upsample=False, **shared
        )
        last = convolution(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """`(B, channels, *S)` and times `(B,)` to `(B, channels, *S)`; S is even."""
        time = self.time(get_timestep_embedding(times, self.width))
        x = self.first(x)
        skips = [x]
        for block in (self.fine, self.coarse):
            x, states = block(x, time)
            skips += states
        x = self.middle(x, time)
        for block in (self.from_coarse, self.from_fine):
            x = block(x, skips[-2:], time)
            del skips[-2:]
        said: Tensor = self.last(x)
        return said


class Diffusion(ResidualDetector):
    """A U-Net predicts noise, DDIM removes it; the score is the worst neighbourhood of the difference.

    Args:
        width: channels of the U-Net's finest stage, a multiple of 8; WIDTH when empty.
        noise: see `NoiseKind`.
        noised: how far images are noised, in steps of 1000; the network learns these alone.
        denoising_steps: of DDIM, from there back to 0.
        repeats: noises that the rebuilt image is the mean over; the same ones for every image.
        learning_rate, batch_size: of the training.
        score, neighbourhood: see `ResidualDetector`.
    """

    def __init__(
        self,
        *,
        width: int | None = None,
        noise: NoiseKind = "pyramid",
        noised: int = 250,
        denoising_steps: int = 5,
        repeats: int = 1,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        score: ResidualScore = "worst",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood)
        check_positive(denoising_steps=denoising_steps, repeats=repeats, learning_rate=learning_rate, batch_size=batch_size)
        check_choice("noise", noise, NoiseKind)
        if width is not None and (width < GROUPS or width % GROUPS):
            raise ValueError(f"width is {width}; expected a multiple of {GROUPS}")
        if not denoising_steps <= noised <= TIMES or noised % denoising_steps or TIMES % (noised // denoising_steps):
            raise ValueError(
                f"noised is {noised}, denoising_steps {denoising_steps}; expected equal steps that divide {TIMES}, as 250 in 5"
            )
        self.width, self.noise, self.noised, self.denoising_steps = width, noise, noised, denoising_steps
        self.repeats, self.learning_rate, self.batch_size = repeats, learning_rate, batch_size

    def fit(self, training: Training) -> Self:
        """Train the network to predict the noise in normal images.

        Raises:
            DataError: there are no images.
        """
        course = Course(training, "diffusion", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training)
        shape, dims = training.healthy.shape, training.scene.dims
        width, channels = self.width or WIDTH[dims], shape[0] * 2**dims
        with fresh_weights(training, "diffusion"):
            network = TimedUNet(dims, channels, width=width)
        self.network_ = network.to(training.device)
        stride = self.noised // self.denoising_steps
        self.scheduler_ = DDIMScheduler(TIMES)
        self.scheduler_.set_timesteps(TIMES // stride)  # so that each of its steps goes back by the stride
        self.times_ = range(self.noised - 1, -1, -stride)
        self.noises_ = self._noise(self.repeats, shape, seeded(training.seed, "baseline", "diffusion", "scored"))

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            noise = self._noise(len(step.rows), shape, step.random).to(seen.images.device)
            times = torch.randint(self.noised, (len(step.rows),), generator=step.random).to(seen.images.device)
            noised = self.scheduler_.add_noise(seen.images, noise, times)
            return pixel_residual(noise, self._predicted(seen, noised, times), "l2", seen.masks).mean()

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    def rebuilt(self, seen: Seen) -> Tensor:
        """Images noised and denoised, (B, C, *S), the mean over the repeats."""
        images = [self._denoised(seen, noise.to(seen.images.device)) for noise in self.noises_]
        return torch.stack(images).mean(0)

    def _denoised(self, seen: Seen, noise: Tensor) -> Tensor:
        """One way there and back, with the same noise (C, *S) for every image."""
        count = len(seen.images)
        start = torch.full((count,), self.times_[0], device=seen.images.device)
        images = self.scheduler_.add_noise(seen.images, noise.expand_as(seen.images), start)
        for time in self.times_:
            predicted = self._predicted(seen, images, torch.full((count,), time, device=images.device))
            images, _ = self.scheduler_.step(predicted, time, images)
        return images

    def _predicted(self, seen: Seen, noised: Tensor, times: Tensor) -> Tensor:
        """The noise that the network sees in images (B, C, *S), which are as they were outside of the masks."""
        return unfold_blocks(self.network_(fold_blocks(seen.fill(noised)), times))

    def _noise(self, count: int, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        """(B, C, *S) of variance 1."""
        if self.noise == "gaussian":
            return torch.randn(count, *shape, generator=random)
        return pyramid_noise(count, shape, persistence=PERSISTENCE, random=random)
