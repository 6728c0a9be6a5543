"""Training of the controllers on the generator's own images, and what they control (thesis II.A.2, IV.A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.config import AttributeConfig, Config
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze, output_distance
from normscape.networks.controller import Controller, LearnedController
from normscape.networks.generator import Generator, draw_latents
from normscape.networks.values import denormalize_value
from normscape.training.checkpoint import TrainingState
from normscape.training.recorder import Recorder
from normscape.training.seeding import seeded


@torch.no_grad()
def generated_values(
    generator: Generator, networks: Mapping[str, AuxiliaryNetwork], *, count: int, seed: int, purpose: str, batch_size: int = 512
) -> tuple[Tensor, dict[str, Tensor]]:
    """Random styles, and the attribute values that the auxiliary networks read from their images.

    Args:
        generator: the averaged generator.
        networks: attributes of kind value to their networks.
        count: images to generate.
        seed, purpose: choose the latents.
        batch_size: images at once.

    Returns:
        Styles `(count, W)` and attribute name to values `(count, D)` in the attribute's unit, on the CPU.
    """
    styles: list[Tensor] = []
    values: dict[str, list[Tensor]] = {name: [] for name in networks}
    for z in draw_latents(count, generator, seeded(seed, purpose)).split(batch_size):
        w = generator.mapping(z)
        images = generator.synthesize(w)
        styles.append(w.cpu())
        for name, network in networks.items():
            values[name].append(denormalize_value(network.attribute, network(images)).cpu())
    return torch.cat(styles), {name: torch.cat(parts) for name, parts in values.items()}


def random_values(attribute: AttributeConfig, count: int, random: torch.Generator, known: Tensor | None = None) -> Tensor:
    """Values `(count, D)` in the attribute's unit: uniform over its range, or drawn from known ones `(N, D)` where given.

    The range of a vector is a box, and at many of its places there may be no image: the corners lie outside of the brain.
    """
    if known is not None:
        return known[torch.randint(len(known), (count,), generator=random)]
    return denormalize_value(attribute, torch.rand(count, attribute.output_dim, generator=random))


def train_controller(
    attribute: AttributeConfig,
    config: Config,
    styles: Tensor,
    values: Tensor,
    *,
    folder: Path,
    digest: str,
    device: torch.device,
    recorder: Recorder,
) -> LearnedController:
    """Fit value -> w^k by L1, with the mapping stacks' optimiser settings (thesis II.A.2, III.A.3b).

    Args:
        attribute: the controlled attribute.
        config: the experiment.
        styles: the attribute's sub-vectors `(N, d)`.
        values: the values read from their images `(N, D)`, in the attribute's unit.
        folder, digest: where checkpoints lie, and the configuration they belong to.
        device: where to train.
        recorder: receives loss and progress.

    Returns:
        The frozen controller.
    """
    settings = config.controllers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(config.seed, "controller", attribute.name, "weights").initial_seed())
        controller = LearnedController(attribute, settings).to(device)
    optimizer = torch.optim.Adam(controller.parameters(), lr=settings.learning_rate, betas=(0.0, 0.99), eps=1e-8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    state = TrainingState(digest, {"controller": controller}, {"adam": optimizer})
    first = state.load_latest(folder)
    scheduler.last_epoch = first
    styles, values = styles.to(device), values.to(device)
    every = max(1, settings.epochs // 10)
    for epoch in range(first, settings.epochs):
        order = torch.randperm(len(styles), generator=seeded(config.seed, "controller", attribute.name, epoch)).to(device)
        total = torch.zeros((), device=device)
        for part in order.split(settings.batch_size):
            loss = F.l1_loss(controller(values[part]), styles[part])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(part)
        scheduler.step()
        recorder.progress(epoch + 1, settings.epochs, "epoch")
        recorder.metrics({f"{attribute.name}/loss": (total / len(styles)).item()}, epoch + 1)
        if (epoch + 1) % every == 0:
            state.save(folder, epoch + 1)
    freeze(controller)
    return controller


@torch.no_grad()
def measure_control(
    attribute: AttributeConfig,
    generator: Generator,
    controller: Controller,
    auxiliaries: Mapping[str, AuxiliaryNetwork],
    *,
    identity: str,
    count: int,
    seed: int,
    known: Tensor | None = None,
    batch_size: int = 512,
) -> dict[str, Tensor]:
    """Ask for random values and read them back from the images.

    Args:
        attribute: the controlled attribute.
        generator: the averaged generator.
        controller: the attribute's controller.
        auxiliaries: attribute name to frozen network.
        identity: the identity attribute's name.
        count: images to generate.
        seed: chooses values and latents.
        known: see `random_values`.
        batch_size: images at once.

    Returns:
        `asked` and `read`, `(count, D)` in the attribute's unit, and `identity_distance`, `(count,)` in [0, 1],
        between the image and one of the same latents at another asked value.
    """
    random = seeded(seed, "control", attribute.name)
    device = generator.constant.device
    columns: dict[str, list[Tensor]] = {"asked": [], "read": [], "identity_distance": []}
    for start in range(0, count, batch_size):
        n = min(batch_size, count - start)
        asked, other = (random_values(attribute, n, random, known) for _ in range(2))
        w = generator.mapping(draw_latents(n, generator, random))
        images, others = (
            generator.synthesize(with_value(generator, controller, w, value.to(device))) for value in (asked, other)
        )
        network = auxiliaries[identity]
        columns["asked"].append(asked)
        columns["read"].append(denormalize_value(attribute, auxiliaries[attribute.name](images)).cpu())
        columns["identity_distance"].append(output_distance(network.attribute, network(images), network(others)).cpu())
    return {name: torch.cat(parts) for name, parts in columns.items()}


def with_value(generator: Generator, controller: Controller, styles: Tensor, value: Tensor) -> Tensor:
    """Styles `(B, W)` or `(B, R, W)` with the controller's sub-space set for values `(B, D)`."""
    part = generator.subspace_slice(controller.attribute.name)
    encoded = controller(value)
    result = styles.clone()
    result[..., part] = encoded if styles.ndim == 2 else encoded[:, None]
    return result


@torch.no_grad()
def value_sweep(generator: Generator, controller: Controller, *, identities: int, values: Tensor, seed: int) -> Tensor:
    """Images of some identities at given values (figures 6 and 12).

    Args:
        generator: the averaged generator.
        controller: the attribute's controller.
        identities: rows.
        values: `(V, D)` in the attribute's unit.
        seed: chooses the identities.

    Returns:
        `(identities, V, C, *S)`.
    """
    w = generator.mapping(draw_latents(identities, generator, seeded(seed, "sweep")))
    columns = [
        generator.synthesize(with_value(generator, controller, w, value.expand(identities, -1).to(w.device))) for value in values
    ]
    return torch.stack(columns, dim=1)
