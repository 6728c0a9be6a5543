"""Training of the factorised StyleGAN2 (thesis II.A.1, III.A.3b; optimiser settings of GAN-Control).

One step: D on real and generated images; R1 every `r1_interval` steps; G against D with the contrastive loss
on the paired batch and, beyond the thesis, with the reconstruction of real images through the encoder; the path length
penalty every `path_length_interval` steps; the averaged networks. The first `warmup_steps` steps only reconstruct.
Also beyond the thesis, what D sees can be augmented; all other losses are taken of images as they are.

Several workers share the rows of one global batch. Every random number is drawn for the global batch, losses are each
worker's share of the global mean, and gradients are summed after each phase, so that any number of workers takes the
same step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.losses.adversarial import discriminator_loss, generator_loss, path_lengths, r1_penalty
from normscape.losses.contrastive import ContrastiveTerm, contrastive_loss, pair_latents
from normscape.losses.masked import as_mask
from normscape.losses.reconstruction import pixel_residual
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator, NoiseSource, draw_latents
from normscape.training.acceleration import compiled, first_order
from normscape.training.atlas import start_atlas
from normscape.training.batches import draw_masks, draw_real
from normscape.training.checkpoint import TrainingState
from normscape.training.communicator import Communicator, share
from normscape.training.discriminator_augmentation import DiscriminatorAugmentation
from normscape.training.observer import GanObserver
from normscape.training.optimizers import lazy_adam, set_rates
from normscape.training.reconstruction import PLACE_WEIGHT, at_known_places, drop_codes
from normscape.training.recorder import Recorder
from normscape.training.seeding import seeded


class GanTrainer:
    """Networks, optimisers and the phases of one training step.

    Args:
        config: the experiment.
        auxiliaries: attribute name to frozen auxiliary network.
        device: where to train.
        communicator: the workers that share the batch.

    Raises:
        ValueError: the batch cannot be shared out evenly among the workers.
    """

    contrastive_loss = staticmethod(contrastive_loss)

    def __init__(
        self,
        config: Config,
        auxiliaries: Mapping[str, AuxiliaryNetwork],
        device: torch.device,
        communicator: Communicator | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.auxiliaries = auxiliaries
        self.communicator = communicator or Communicator()
        settings = config.gan
        self.rows = share(settings.batch_size, config.discriminator.deviation_group, self.communicator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, "gan", "weights").initial_seed())
            self.generator = Generator.from_config(config).to(device)
            self.discriminator = Discriminator.from_config(config).to(device)
            self.encoder = Encoder.from_config(config).to(device) if settings.reconstruction_weight > 0 else None
        for network in filter(None, (self.generator, self.discriminator, self.encoder)):
            self.communicator.broadcast(network.state_dict().values())
        self.averaged, self.averaged_encoder = copy.deepcopy(self.generator), copy.deepcopy(self.encoder)
        for network in filter(None, (self.averaged, self.averaged_encoder)):
            freeze(network)
        lazy_g, lazy_d = settings.path_length_weight > 0, settings.r1_gamma > 0
        self.optimizer_g = lazy_adam(
            list(self.generator.parameters()), settings.learning_rate, settings.path_length_interval, lazy=lazy_g
        )
        self.optimizer_d = lazy_adam(
            list(self.discriminator.parameters()), settings.learning_rate, settings.r1_interval, lazy=lazy_d
        )
        self.optimizer_e = (
            None if self.encoder is None else lazy_adam(list(self.encoder.parameters()), settings.learning_rate, 1, lazy=False)
        )
        self.mean_path_length = torch.zeros((), device=device)
        self.augmentation = None if settings.augmentation.mode == "none" else DiscriminatorAugmentation(config, device)
        self.ema_decay = 0.5 ** (settings.batch_size / settings.ema_half_life_images)
        self.attribute_widths = [a.latent_dim for a in config.attributes]
        # the same weights, for phases that need first derivatives alone
        self.synthesize = compiled(self.generator.synthesize, settings)
        self.judge = compiled(self.discriminator, settings)
        self.encode = None if self.encoder is None else compiled(self.encoder, settings)

    def state(self, digest: str) -> TrainingState:
        """What a checkpoint holds."""
        modules = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "averaged": self.averaged,
            "encoder": self.encoder,
            "averaged_encoder": self.averaged_encoder,
        }
        optimizers = {"generator": self.optimizer_g, "discriminator": self.optimizer_d, "encoder": self.optimizer_e}
        return TrainingState(
            digest,
            {name: module for name, module in modules.items() if module is not None},
            {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None},
            {"mean_path_length": self.mean_path_length} | ({} if self.augmentation is None else self.augmentation.state()),
        )

    def start_atlas(self, samples: SampleSet) -> None:
        """Begin with the training patches' mean, see `normscape.training.atlas`; the averaged generator, too."""
        atlas, averaged = self.generator.atlas, self.averaged.atlas
        assert atlas is not None
        assert averaged is not None
        start_atlas(atlas, samples, self.config)
        self.communicator.broadcast(atlas.state_dict().values())
        averaged.load_state_dict(atlas.state_dict())

    def _random(self, step: int, phase: str) -> torch.Generator:
        return seeded(self.config.seed, "gan", phase, step)

    def _latents(self, random: torch.Generator, *, paired: bool) -> Tensor:
        """This worker's rows of a global batch of latents."""
        z = draw_latents(self.config.gan.batch_size, self.generator, random)
        if paired:
            z = pair_latents(z, self.attribute_widths)
        return z[self.rows]

    def _noise(self, random: torch.Generator, total: int, rows: Tensor) -> NoiseSource | None:
        """The noise inputs of some rows of a global batch, on the training device, seeded from `random`."""
        if not self.config.generator.noise:
            return None
        if self.device.type != "cpu":
            random = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=random)))
        return NoiseSource(random) if self.communicator.size == 1 else NoiseSource(random, total, rows.to(self.device))

    def _mean(self, share_of_mean: Tensor) -> Tensor:
        """This worker's part of a mean over the global batch, from the mean over its own rows."""
        return share_of_mean / self.communicator.size

    def _seen(self, images: Tensor, step: int, phase: str) -> Tensor:
        """This worker's images `(b, C, *S)` as D sees them."""
        if self.augmentation is None:
            return images
        numbers = self.augmentation.draw(self.config.gan.batch_size, self._random(step, f"augmentation {phase}"))
        return self.augmentation(images, numbers[self.rows].to(self.device))

    def discriminator_phase(self, real: Tensor, step: int) -> dict[str, Tensor]:
        """Update D on this worker's real images `(b, C, *S)` and as many generated ones."""
        random = self._random(step, "d")
        with first_order(self.config.gan, self.device):
            with torch.no_grad():
                styles = self.generator.mapping(self._latents(random, paired=False))
                fake = self.synthesize(styles, self._noise(random, self.config.gan.batch_size, self.rows))
            logits = self.judge(self._seen(real, step, "d real"))
            loss = self._mean(discriminator_loss(logits, self.judge(self._seen(fake, step, "d fake"))))
        measured = {"loss_d": loss.detach()}
        if self.augmentation is None:
            self._update(loss, self.optimizer_d)
            return measured
        signs = logits.detach().sign().sum()
        self._update(loss, self.optimizer_d, also=[signs])
        self.augmentation.follow(signs, step + 1 - self.config.gan.warmup_steps)
        return measured | {name: self._mean(value) for name, value in self.augmentation.measured().items()}

    def r1_phase(self, real: Tensor, step: int) -> dict[str, Tensor]:
        """Update D on the R1 penalty at this worker's real images, as they are, of what D says of them as it sees them."""
        real = real.detach().requires_grad_()
        penalty = self._mean(r1_penalty(self.discriminator(self._seen(real, step, "r1")), real))
        self._update(penalty * (self.config.gan.r1_gamma / 2 * self.config.gan.r1_interval), self.optimizer_d)
        return {"r1": penalty.detach()}

    def generator_phase(
        self,
        step: int,
        real: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Update G against D and on the factorised contrastive loss of a paired batch, and G and E on real images.

        Args:
            step: counted from 0.
            real: this worker's real images `(b, C, *S)`; only needed with an encoder.
            values: their known values, attribute name to `(b, D)`.
            masks: what their reconstruction is measured on, `(b, 1, *S)`; everything when empty.
        """
        with first_order(self.config.gan, self.device):
            loss, measured = self._generator_losses(step, real, values, masks)
        self._update(loss, *filter(None, (self.optimizer_g, self.optimizer_e)))
        return measured

    def _generator_losses(
        self, step: int, real: Tensor | None, values: Mapping[str, Tensor] | None, masks: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of a generator phase, and what is measured of them."""
        settings = self.config.gan
        adversarial, rebuild = step >= settings.warmup_steps, self.encoder is not None
        random = self._random(step, "g")
        z = [self._latents(random, paired=True)] if adversarial else []
        if self.encoder is not None:
            assert real is not None, "reconstruction needs real images"
            assert values is not None, "reconstruction needs the images' known values"
            z.append(self._codes(real, values, random))
        parts, batch = len(z), settings.batch_size
        rows = torch.cat([self.rows + i * batch for i in range(parts)])
        styles = self.generator.mapping(torch.cat(z))
        losses: list[Tensor] = []
        measured: dict[str, Tensor] = {}
        if rebuild and self.generator.position is not None:
            assert values is not None
            styles, astray = at_known_places(self.generator, styles, values)
            astray = self._mean(astray)
            losses.append(PLACE_WEIGHT * astray)
            measured["place_l1"] = astray.detach()
        images = self.synthesize(styles, self._noise(random, parts * batch, rows)).chunk(parts)
        if rebuild:
            assert real is not None
            mask = as_mask(masks, self.device)
            difference = (images[-1] - real).abs() if mask is None else pixel_residual(images[-1], real, "l1", mask)
            residual = self._mean(difference.mean())
            losses.append(settings.reconstruction_weight * residual)
            measured["reconstruction_l1"] = residual.detach()
        if adversarial:
            self.discriminator.requires_grad_(False)
            fooled = self._mean(generator_loss(self.judge(self._seen(images[0], step, "g"))))
            self.discriminator.requires_grad_(True)
            contrastive, terms = self._contrastive(images[0])
            losses += [fooled, contrastive]
            measured |= {"loss_g": fooled.detach(), "contrastive": self._mean(contrastive.detach())}
            for name, term in terms.items():
                measured[f"distance_same/{name}"] = self._mean(term.distance_same)
                measured[f"distance_different/{name}"] = self._mean(term.distance_different)
        return torch.stack(losses).sum(), measured

    def _codes(self, real: Tensor, values: Mapping[str, Tensor], random: torch.Generator) -> Tensor:
        """The encoder's latents of this worker's real images, some with nothing but what is known of them."""
        assert self.encoder is not None
        assert self.encode is not None
        z, share_dropped = self.encode(real, values), self.config.gan.code_dropout
        if share_dropped == 0:
            return z
        dropped = (torch.rand(self.config.gan.batch_size, generator=random) < share_dropped)[self.rows]
        return drop_codes(self.generator, z, self.encoder.seen, dropped.to(z.device))

    def _contrastive(self, fake: Tensor) -> tuple[Tensor, dict[str, ContrastiveTerm]]:
        """The loss of the whole global batch; its gradient reaches this worker's rows only."""
        outputs = {name: network(fake) for name, network in self.auxiliaries.items()}
        if self.communicator.size > 1:
            batch, group = self.config.gan.batch_size, self.config.discriminator.deviation_group
            owners = itertools.starmap(_Place, ((rank, self.communicator.size) for rank in range(self.communicator.size)))
            order = torch.cat([share(batch, group, owner) for owner in owners]).argsort().to(self.device)
            outputs = {name: self.communicator.gather(output)[order] for name, output in outputs.items()}
        return self.contrastive_loss(outputs, self.config.attributes)

    def path_length_phase(self, step: int) -> dict[str, Tensor]:
        """Update G on the path length penalty."""
        settings, communicator = self.config.gan, self.communicator
        random = self._random(step, "path")
        count = settings.batch_size // settings.path_length_batch_shrink
        rows = share(count, 1, communicator)
        styles = self.generator.mapping(draw_latents(count, self.generator, random)[rows])
        images = self.generator.synthesize(styles, self._noise(random, count, rows))
        probe = torch.randn(count, *images.shape[1:], generator=random)[rows].to(self.device)
        lengths = path_lengths(images, styles, probe)
        mean = self._mean(lengths.detach().mean())
        if communicator.size > 1:
            communicator.sum([mean])
        self.mean_path_length.lerp_(mean, settings.path_length_decay)
        penalty = self._mean((lengths - self.mean_path_length).square().mean())
        self._update(penalty * (settings.path_length_weight * settings.path_length_interval), self.optimizer_g)
        return {"path_length": self._mean(mean)}

    def step(
        self, real: Tensor, step: int, values: Mapping[str, Tensor] | None = None, masks: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All phases of one training step.

        Args:
            real: this worker's real images `(b, C, *S)` in [-1, 1].
            step: counted from 0.
            values: their known values, attribute name to `(b, D)`; only needed with an encoder.
            masks: what their reconstruction is measured on, `(b, 1, *S)`; everything when empty.

        Returns:
            Losses and distances as tensors on the device; summed over the workers they are those of the global batch.
        """
        settings = self.config.gan
        measured: dict[str, Tensor] = {}
        adversarial = step >= settings.warmup_steps
        if settings.warmup_steps:
            set_rates([o for o in (self.optimizer_g, self.optimizer_e) if o is not None], settings, step)
        if adversarial:
            measured |= self.discriminator_phase(real, step)
            if settings.r1_gamma > 0 and step % settings.r1_interval == 0:
                measured |= self.r1_phase(real, step)
        measured |= self.generator_phase(step, real, values, masks)
        if adversarial and settings.path_length_weight > 0 and step % settings.path_length_interval == 0:
            measured |= self.path_length_phase(step)
        with torch.no_grad():
            for averaged, network in ((self.averaged, self.generator), (self.averaged_encoder, self.encoder)):
                if averaged is not None and network is not None:
                    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - self.ema_decay)
        return measured

    def _update(self, loss: Tensor, *optimizers: torch.optim.Optimizer, also: Sequence[Tensor] = ()) -> None:
        """One step of the optimisers; `also` is summed over the workers in the gradients' message, in place."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.communicator.size > 1:
            parameters = itertools.chain.from_iterable(group["params"] for o in optimizers for group in o.param_groups)
            self.communicator.sum([*(p.grad for p in parameters if p.grad is not None), *also])
        for optimizer in optimizers:
            optimizer.step()


def train_gan(
    config: Config,
    samples: SampleSet,
    auxiliaries: Mapping[str, AuxiliaryNetwork],
    *,
    folder: Path,
    digest: str,
    device: torch.device,
    recorder: Recorder,
    communicator: Communicator | None = None,
    saved: Callable[[int], None] = lambda step: None,
) -> GanTrainer:
    """Train from the newest checkpoint of the folder, or from the start.

    Args:
        config: the experiment.
        samples: training images.
        auxiliaries: attribute name to frozen auxiliary network.
        folder: holds checkpoints and sample grids; shared by all workers.
        digest: identifies the configuration in the checkpoints.
        device: where to train.
        recorder: receives losses, distances and progress from rank 0.
        communicator: the workers that share the batch.
        saved: called by every worker when a checkpoint is complete, with its step.

    Returns:
        The trainer at its last step.
    """
    settings = config.gan
    communicator = communicator or Communicator()
    first = communicator.rank == 0
    trainer = GanTrainer(config, auxiliaries, device, communicator)
    state = trainer.state(digest)
    start = state.load_latest(folder)
    observer = GanObserver(config, samples, auxiliaries, folder=folder, device=device)
    if first:
        recorder.rewind(start)
        if start == 0:
            observer.save_grid(trainer.averaged, 0)
    if start == 0 and trainer.generator.atlas is not None:
        trainer.start_atlas(samples)
    for step in range(start, settings.steps):
        real, values = draw_real(samples, config, step, trainer.rows)
        masks = draw_masks(samples, config, step, trainer.rows) if trainer.encoder is not None else None
        measured = trainer.step(real.to(device), step, {name: value.to(device) for name, value in values.items()}, masks)
        done = step + 1
        last = done == settings.steps
        if done % settings.log_interval == 0 or last:
            shares = torch.stack(list(measured.values()))
            communicator.sum([shares])
            if first:
                recorder.metrics(dict(zip(measured, shares.tolist(), strict=True)), done)
        if first:
            recorder.progress(done, settings.steps)
            if done % settings.sample_interval == 0 or last:
                observer.save_grid(trainer.averaged, done)
                recorder.metrics(observer.distances(trainer.averaged), done)
        if done % settings.checkpoint_interval == 0 or last:
            if first:
                state.save(folder, done)
            saved(done)
    return trainer


class _Place(Communicator):
    """Another worker's place, to tell which rows are its share."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
