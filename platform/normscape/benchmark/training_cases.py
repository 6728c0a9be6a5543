"""Cases of the training: the step and its phases, the contrastive loss, the auxiliary networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from normscape.benchmark.bench import FAST, REFERENCE, Bench
from normscape.benchmark.reference import ReferenceTrainer, looped_contrastive_loss
from normscape.benchmark.results import STEP_SPEEDUP, Row
from normscape.benchmark.timing import total
from normscape.losses.contrastive import contrastive_loss
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.batches import draw_real
from normscape.training.gan import GanTrainer
from normscape.training.seeding import seeded

AVERAGE_STEP = "training step with its share of the regularisers"
WARM_UP_STEP = "warm-up step"


def training(bench: Bench) -> None:
    """The GAN training step and its phases."""
    config, device = bench.config, bench.device
    settings = config.gan
    batch = settings.batch_size
    auxiliaries = bench.auxiliaries()
    trainers = {FAST: GanTrainer(config, auxiliaries, device), REFERENCE: ReferenceTrainer(config, auxiliaries, device)}
    samples = bench.samples(4 * batch)
    real, values = draw_real(samples, config, 0)
    real, values = real.to(device), {name: value.to(device) for name, value in values.items()}
    masks = bench.masks(batch)

    def compare(case: str, size: int, action: Callable[[GanTrainer], object]) -> Row:
        return bench.compare(case, size, {form: partial(action, trainer) for form, trainer in trainers.items()})

    # a step after the warm-up, without the lazily applied regularisers, which are due at the multiples of their intervals
    late = settings.warmup_steps * settings.r1_interval * settings.path_length_interval + 1
    step = compare(
        "training step (D + G)", batch, lambda t: t.step(draw_real(samples, config, late)[0].to(device), late, values, masks)
    )
    compare("discriminator phase", batch, lambda t: t.discriminator_phase(real, late))
    r1 = compare("R1 phase", batch, lambda t: t.r1_phase(real, late))
    compare("generator phase", batch, lambda t: t.generator_phase(late, real, values, masks))
    if settings.warmup_steps:
        compare(WARM_UP_STEP, batch, lambda t: t.generator_phase(0, real, values, masks))
    path = compare("path length phase", batch // settings.path_length_batch_shrink, lambda t: t.path_length_phase(late))

    bench.ratio(STEP_SPEEDUP, _speedup(step))
    parts = [(step, 1.0)]
    if settings.r1_gamma > 0 and settings.r1_interval > 1:
        parts.append((r1, 1 / settings.r1_interval))
    if settings.path_length_weight > 0 and settings.path_length_interval > 1:
        parts.append((path, 1 / settings.path_length_interval))
    average = bench.keep(
        AVERAGE_STEP,
        batch,
        total([(row.timing, weight) for row, weight in parts]),
        total([(row.reference, weight) for row, weight in parts if row.reference is not None]),
        sum((row.operations or 0.0) * weight for row, weight in parts),
    )
    bench.ratio("training step with regularisers: reference / fast", _speedup(average))


def contrastive(bench: Bench) -> None:
    """The contrastive loss alone, forward and backward, on random outputs of the auxiliary networks."""
    attributes, batch = bench.config.attributes, bench.config.gan.batch_size
    outputs = {
        a.name: torch.randn(batch, a.output_dim, generator=seeded(0, a.name)).to(bench.device).requires_grad_()
        for a in attributes
    }

    def run(loss: Callable[..., tuple[Tensor, object]]) -> None:
        torch.autograd.grad(loss(outputs, attributes)[0], list(outputs.values()))

    row = bench.compare(
        "contrastive loss", batch, {FAST: partial(run, contrastive_loss), REFERENCE: partial(run, looped_contrastive_loss)}
    )
    bench.ratio("contrastive loss: reference / fast", _speedup(row))


def auxiliary(bench: Bench) -> None:
    """All frozen auxiliary networks, forward and backward to the images; the reference keeps its batch normalisations apart."""
    batch = bench.config.gan.batch_size
    images = bench.samples(batch).batch(torch.arange(batch)).to(bench.device).requires_grad_()

    def run(networks: Mapping[str, AuxiliaryNetwork]) -> None:
        torch.autograd.grad(torch.stack([network(images).sum() for network in networks.values()]).sum(), images)

    forms = {FAST: bench.auxiliaries(), REFERENCE: bench.auxiliaries(fold=False)}
    row = bench.compare(
        "auxiliary networks, forward + backward", batch, {form: partial(run, networks) for form, networks in forms.items()}
    )
    bench.ratio("auxiliary networks: reference / fast", _speedup(row))


def _speedup(row: Row) -> float:
    assert row.speedup is not None
    return row.speedup
