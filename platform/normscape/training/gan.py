"""Training of the factorised StyleGAN2 (thesis II.A.1, III.A.3b; optimiser settings of GAN-Control).

One step: D on real and generated images; R1 every `r1_interval` steps; G against D with the contrastive loss
on the paired batch; the path length penalty every `path_length_interval` steps; the averaged generator.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.losses.adversarial import discriminator_loss, generator_loss, path_lengths, r1_penalty
from normscape.losses.contrastive import contrastive_loss, pair_latents
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.discriminator import Discriminator
from normscape.networks.generator import Generator, draw_latents
from normscape.training.checkpoint import TrainingState
from normscape.training.observer import GanObserver
from normscape.training.recorder import Recorder
from normscape.training.seeding import seeded


def lazy_adam(parameters: list[Tensor], learning_rate: float, interval: int, *, lazy: bool) -> torch.optim.Adam:
    """Adam(0, 0.99) with the correction for a regulariser applied every `interval` steps (Karras et al. 2020, appendix B)."""
    c = interval / (interval + 1) if lazy else 1.0
    return torch.optim.Adam(parameters, lr=learning_rate * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)


class GanTrainer:
    """Networks, optimisers and the phases of one training step.

    Args:
        config: the experiment.
        auxiliaries: attribute name to frozen auxiliary network.
        device: where to train.
    """

    def __init__(self, config: Config, auxiliaries: Mapping[str, AuxiliaryNetwork], device: torch.device) -> None:
        self.config, self.device = config, device
        self.auxiliaries = auxiliaries
        settings = config.gan
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, "gan", "weights").initial_seed())
            self.generator = Generator.from_config(config).to(device)
            self.discriminator = Discriminator.from_config(config).to(device)
        self.averaged = copy.deepcopy(self.generator)
        freeze(self.averaged)
        self.optimizer_g = lazy_adam(
            list(self.generator.parameters()),
            settings.learning_rate,
            settings.path_length_interval,
            lazy=settings.path_length_weight > 0,
        )
        self.optimizer_d = lazy_adam(
            list(self.discriminator.parameters()), settings.learning_rate, settings.r1_interval, lazy=settings.r1_gamma > 0
        )
        self.mean_path_length = torch.zeros((), device=device)
        self.ema_decay = 0.5 ** (settings.batch_size / settings.ema_half_life_images)
        self.attribute_widths = [a.latent_dim for a in config.attributes]

    def state(self, digest: str) -> TrainingState:
        """What a checkpoint holds."""
        return TrainingState(
            digest,
            {"generator": self.generator, "discriminator": self.discriminator, "averaged": self.averaged},
            {"generator": self.optimizer_g, "discriminator": self.optimizer_d},
            {"mean_path_length": self.mean_path_length},
        )

    def _random(self, step: int, phase: str) -> torch.Generator:
        return seeded(self.config.seed, "gan", phase, step)

    def _generate(self, count: int, random: torch.Generator, *, paired: bool) -> Tensor:
        z = draw_latents(count, self.generator, random)
        if paired:
            z = pair_latents(z, self.attribute_widths)
        return self.generator(z, self._noise(random))

    def _noise(self, random: torch.Generator) -> torch.Generator | None:
        """The noise source on the training device, seeded from `random`."""
        if not self.config.generator.noise:
            return None
        if self.device.type == "cpu":
            return random
        return torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=random)))

    def discriminator_phase(self, real: Tensor, step: int) -> dict[str, Tensor]:
        """Update D on real images `(B, C, *S)` and as many generated ones."""
        with torch.no_grad():
            fake = self._generate(len(real), self._random(step, "d"), paired=False)
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        self._update(self.optimizer_d, loss)
        return {"loss_d": loss.detach()}

    def r1_phase(self, real: Tensor) -> dict[str, Tensor]:
        """Update D on the R1 penalty at real images."""
        real = real.detach().requires_grad_()
        penalty = r1_penalty(self.discriminator(real), real)
        self._update(self.optimizer_d, penalty * (self.config.gan.r1_gamma / 2 * self.config.gan.r1_interval))
        return {"r1": penalty.detach()}

    def generator_phase(self, batch_size: int, step: int) -> dict[str, Tensor]:
        """Update G against D and on the factorised contrastive loss of a paired batch."""
        self.discriminator.requires_grad_(False)
        fake = self._generate(batch_size, self._random(step, "g"), paired=True)
        adversarial = generator_loss(self.discriminator(fake))
        outputs = {name: network(fake) for name, network in self.auxiliaries.items()}
        contrastive, terms = contrastive_loss(outputs, self.config.attributes)
        self._update(self.optimizer_g, adversarial + contrastive)
        self.discriminator.requires_grad_(True)
        measured = {"loss_g": adversarial.detach(), "contrastive": contrastive.detach()}
        for name, term in terms.items():
            measured |= {f"distance_same/{name}": term.distance_same, f"distance_different/{name}": term.distance_different}
        return measured

    def path_length_phase(self, batch_size: int, step: int) -> dict[str, Tensor]:
        """Update G on the path length penalty."""
        settings = self.config.gan
        random = self._random(step, "path")
        z = draw_latents(batch_size // settings.path_length_batch_shrink, self.generator, random)
        styles = self.generator.mapping(z)
        lengths = path_lengths(self.generator.synthesize(styles, self._noise(random)), styles, random)
        self.mean_path_length.lerp_(lengths.detach().mean(), settings.path_length_decay)
        penalty = (lengths - self.mean_path_length).square().mean()
        self._update(self.optimizer_g, penalty * (settings.path_length_weight * settings.path_length_interval))
        return {"path_length": lengths.detach().mean()}

    def step(self, real: Tensor, step: int) -> dict[str, Tensor]:
        """All phases of one training step on real images `(B, C, *S)` in [-1, 1].

        Returns:
            Losses and distances, as tensors on the device.
        """
        settings = self.config.gan
        measured = self.discriminator_phase(real, step)
        if settings.r1_gamma > 0 and step % settings.r1_interval == 0:
            measured |= self.r1_phase(real)
        measured |= self.generator_phase(len(real), step)
        if settings.path_length_weight > 0 and step % settings.path_length_interval == 0:
            measured |= self.path_length_phase(len(real), step)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.generator.parameters()), 1 - self.ema_decay)
        return measured

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def draw_real(samples: SampleSet, batch_size: int, seed: int, step: int) -> Tensor:
    """A random batch of real images `(B, C, *S)` in [-1, 1] for a step."""
    return samples.batch(torch.randint(len(samples), (batch_size,), generator=seeded(seed, "gan", "real", step)))


def train_gan(
    config: Config,
    samples: SampleSet,
    auxiliaries: Mapping[str, AuxiliaryNetwork],
    *,
    folder: Path,
    digest: str,
    device: torch.device,
    recorder: Recorder,
) -> GanTrainer:
    """Train from the newest checkpoint of the folder, or from the start.

    Args:
        config: the experiment.
        samples: training images.
        auxiliaries: attribute name to frozen auxiliary network.
        folder: holds checkpoints and sample grids.
        digest: identifies the configuration in the checkpoints.
        device: where to train.
        recorder: receives losses, distances and progress.

    Returns:
        The trainer at its last step.
    """
    settings = config.gan
    trainer = GanTrainer(config, auxiliaries, device)
    state = trainer.state(digest)
    start = state.load_latest(folder)
    recorder.rewind(start)
    observer = GanObserver(config, samples, auxiliaries, folder=folder, device=device)
    if start == 0:
        observer.save_grid(trainer.averaged, 0)
    for step in range(start, settings.steps):
        measured = trainer.step(draw_real(samples, settings.batch_size, config.seed, step).to(device), step)
        done = step + 1
        recorder.progress(done, settings.steps)
        if done % settings.log_interval == 0 or done == settings.steps:
            values = torch.stack(list(measured.values())).tolist()
            recorder.metrics(dict(zip(measured, values, strict=True)), done)
        if done % settings.sample_interval == 0 or done == settings.steps:
            observer.save_grid(trainer.averaged, done)
            recorder.metrics(observer.distances(trainer.averaged), done)
        if done % settings.checkpoint_interval == 0 or done == settings.steps:
            state.save(folder, done)
    return trainer
