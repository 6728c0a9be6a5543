"""The training loops on 3D patches with masks, an age and a position: everything runs, learns and stays reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.inversion.projector import Projector
from normscape.inversion.style_space import WhitenedSubspace
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import EncodedController
from normscape.training.auxiliary import train_auxiliary, value_distance, value_error
from normscape.training.batches import draw_masks, draw_real, real_index
from normscape.training.controllers import measure_control, random_values
from normscape.training.gan import GanTrainer, train_gan
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
Make = Callable[..., Config]
MakeSamples = Callable[..., SampleSet]


def test_from_the_auxiliary_networks_to_a_projection(
    toy_brain_config: Make, toy_brain_samples: MakeSamples, tmp_path: Path
) -> None:
    """Three networks, warm-up and adversarial steps with noise inputs, two controllers, a masked projection: all finite."""
    config, samples = toy_brain_config(), toy_brain_samples()
    assert config.generator.noise
    arguments = {"digest": "d", "device": CPU, "recorder": SilentRecorder()}
    auxiliaries = {
        a.name: train_auxiliary(a, config, samples, folder=tmp_path / a.name, **arguments).fold() for a in config.attributes
    }
    trainer = train_gan(config, samples, auxiliaries, folder=tmp_path / "gan", **arguments)
    assert trainer.averaged_encoder is not None
    controllers = {}
    for attribute in config.value_attributes:
        known = samples.values[attribute.column or ""] if attribute.output_dim > 1 else None
        controllers[attribute.name] = EncodedController.of(attribute, config, trainer.averaged_encoder, trainer.averaged)
        measured = measure_control(
            attribute,
            trainer.averaged,
            controllers[attribute.name],
            auxiliaries,
            identity="identity",
            count=8,
            seed=0,
            known=known,
        )
        assert measured["asked"].shape == measured["read"].shape == (8, attribute.output_dim)
    generator = trainer.averaged
    with torch.no_grad():
        styles = generator.mapping(torch.randn(256, generator.latent_dim, generator=torch.Generator().manual_seed(0)))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    projector = Projector(
        config,
        generator,
        controllers,
        space,
        auxiliaries["identity"].features,
        auxiliaries=auxiliaries,
        discriminator=freeze(trainer.discriminator),
        encoder=trainer.averaged_encoder,
    )
    rows = torch.tensor([0, 30, 71])
    values = {"age": samples.values["age_years"][rows], "position": samples.values["position_mm"][rows]}
    result = projector.project(samples.batch(rows), values, samples.masks(rows))
    assert torch.isfinite(result.images).all()
    assert all(value.shape == (3,) and torch.isfinite(value).all() for value in result.residuals.values())


def test_the_position_network_learns(toy_brain_config: Make, toy_brain_samples: MakeSamples, tmp_path: Path) -> None:
    """Slopes tell the place: in 180 steps the mean distance falls well below what guessing the middle gives, 49 mm."""
    config, samples = toy_brain_config(), toy_brain_samples(each=40)
    data = config.model_dump()
    data["attributes"][2]["auxiliary"] |= {"epochs": 12, "learning_rate": 0.05, "width": 8, "stem_stride": 2}
    data["augmentation"]["noise_std_max"] = 0.02
    config = Config.model_validate(data)
    network = train_auxiliary(
        config.attributes[2], config, samples, folder=tmp_path, digest="d", device=CPU, recorder=SilentRecorder()
    )
    middle = value_distance(samples.values["position_mm"], torch.zeros(len(samples), 3)).mean().item()
    assert middle == pytest.approx(49, abs=2)
    assert value_error(network, samples, count=200, seed=0, split="train", device=CPU) < 0.65 * middle


def test_the_distance_of_a_vector_is_euclidean() -> None:
    """3, 4 and 0 mm off make 5 mm; a number's distance is its absolute difference."""
    assert value_distance(torch.zeros(1, 3), torch.tensor([[3.0, -4.0, 0.0]])).tolist() == [5.0]
    assert value_distance(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [-0.5]])).tolist() == [2.0, 2.5]


def test_asked_vectors_come_from_known_ones(toy_brain_config: Make) -> None:
    """A number is spread over its range; of a vector only places that images have are asked for."""
    _, age, position = toy_brain_config().attributes
    random = torch.Generator().manual_seed(0)
    ages = random_values(age, 500, random)
    assert 20 <= ages.min() < 25 < 75 < ages.max() <= 80
    known = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, 60.0]])
    drawn = random_values(position, 50, random, known)
    assert len(drawn.unique(dim=0)) == 2
    assert all(any(torch.equal(row, k) for k in known) for row in drawn)


def test_rebuilding_counts_under_the_mask_alone(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """What stands outside of the masks changes neither the residual nor a weight of the generator in a warm-up step."""
    config, samples = toy_brain_config(), toy_brain_samples()
    torch.manual_seed(7)
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    real, values = draw_real(samples, config, 0)
    masks = draw_masks(samples, config, 0)
    assert masks is not None
    other = torch.where(masks, real, -real)
    residuals, weights = [], []
    for images in (real, other):
        trainer = GanTrainer(config, auxiliaries, CPU)
        assert trainer.encoder is not None
        latents = trainer.encoder(real, values)
        trainer.encoder.forward = lambda *arguments, latents=latents: latents  # the same latents for both
        measured = trainer.step(images, 0, values, masks.float())
        residuals.append(measured["reconstruction_l1"].item())
        weights.append(torch.cat([p.detach().flatten() for p in trainer.generator.parameters()]))
    assert residuals[0] == residuals[1] > 0
    assert torch.equal(*weights)
    adversarial = GanTrainer(config, auxiliaries, CPU).step(real, 3, values, masks)
    assert {"loss_d", "loss_g", "contrastive", "reconstruction_l1"} <= adversarial.keys()


def test_a_share_of_the_augmented_batch_is_a_part_of_it(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """Real patches are augmented, anew each step, and some rows of a batch are the same rows of the whole one."""
    config, samples = toy_brain_config(), toy_brain_samples()
    images, values = draw_real(samples, config, 5)
    rows = torch.tensor([1, 4, 6])
    some, some_values = draw_real(samples, config, 5, rows)
    assert torch.equal(some, images[rows])
    assert torch.equal(some_values["position"], values["position"][rows])
    assert torch.equal(draw_masks(samples, config, 5, rows), draw_masks(samples, config, 5)[rows])
    plain = samples.batch(real_index(samples, config, 5))
    assert not torch.equal(images, plain)
    assert torch.equal(images, draw_real(samples, config, 5)[0])


def test_a_resumed_run_equals_an_uninterrupted_one(
    toy_brain_config: Make, toy_brain_samples: MakeSamples, tmp_path: Path
) -> None:
    """With masks, augmentation and noise inputs too."""
    samples = toy_brain_samples()
    whole, half = toy_brain_config(gan={"steps": 4, "checkpoint_interval": 2}), toy_brain_config(gan={"steps": 2})
    torch.manual_seed(7)
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, whole).fold() for a in whole.attributes}
    arguments = {"digest": "d", "device": CPU, "recorder": SilentRecorder()}
    straight = train_gan(whole, samples, auxiliaries, folder=tmp_path / "a", **arguments)
    train_gan(half, samples, auxiliaries, folder=tmp_path / "b", **arguments)
    again = train_gan(whole, samples, auxiliaries, folder=tmp_path / "b", **arguments)
    for a, b in ((straight.averaged, again.averaged), (straight.encoder, again.encoder)):
        assert a is not None
        assert b is not None
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_rates_of_the_warm_up(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """Generator and encoder have their own rates until the discriminator joins in, then those of the adversarial training.

    As a cosine, the rate has come half way down in the middle of the warm-up.
    """
    config = toy_brain_config(gan={"warmup_steps": 1, "warmup_learning_rate": 0.01, "warmup_beta1": 0.9})
    samples = toy_brain_samples()
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    trainer = GanTrainer(config, auxiliaries, CPU)
    assert trainer.optimizer_e is not None
    for step, rate, beta1 in ((0, 0.01, 0.9), (1, config.gan.learning_rate, 0.0)):
        real, values = draw_real(samples, config, step, trainer.rows)
        trainer.step(real, step, values, draw_masks(samples, config, step, trainer.rows))
        for optimizer in (trainer.optimizer_g, trainer.optimizer_e):
            [group] = optimizer.param_groups
            assert group["lr"] == pytest.approx(rate)
            assert group["betas"] == (beta1, 0.99)
    halfway = toy_brain_config(gan={"warmup_steps": 10, "warmup_learning_rate": 0.01, "warmup_schedule": "cosine"})
    trainer = GanTrainer(halfway, auxiliaries, CPU)
    real, values = draw_real(samples, halfway, 5, trainer.rows)
    trainer.step(real, 5, values)
    [group] = trainer.optimizer_g.param_groups
    assert group["lr"] == pytest.approx((0.01 + halfway.gan.learning_rate) / 2)
