"""Stage `gan`: train the factorised StyleGAN2 (thesis II.A.1, III.A.3b; table III, generated).

Writes:

- `generator.safetensors` (the averaged generator), `discriminator.safetensors`, and `encoder.safetensors` (averaged) where there
  is one;
- `samples/step-*.png`: images of fixed latents, an identity a row;
- `triplets.parquet` and `distances.parquet`, as stage `auxiliary`, with split `generated`.
"""

from __future__ import annotations

from collections.abc import Callable

from normscape.stages.auxiliary import TRIPLETS, write_quality
from normscape.stages.core import StageContext
from normscape.stages.models import load_auxiliaries
from normscape.stages.prepare import open_samples
from normscape.training.auxiliary import measure_triplets
from normscape.training.checkpoint import TrainingState, save_module
from normscape.training.communicator import Communicator
from normscape.training.gan import GanTrainer, train_gan
from normscape.training.observer import GanObserver, generated_triplets


def run(context: StageContext) -> dict[str, float]:
    """Train the GAN from where it stands, and measure its images."""
    metrics = finish(context, train(context))
    clear(context)
    return metrics


def train(
    context: StageContext, communicator: Communicator | None = None, saved: Callable[[int], None] = lambda step: None
) -> GanTrainer:
    """Train from the newest checkpoint; every worker calls it. See `normscape.training.gan.train_gan`."""
    samples, _ = open_samples(context)
    return train_gan(
        context.config,
        samples,
        load_auxiliaries(context.config, context.inputs["auxiliary"], context.device),
        folder=context.folder,
        digest=context.key,
        device=context.device,
        recorder=context.recorder,
        communicator=communicator,
        saved=saved,
    )


def finish(context: StageContext, trainer: GanTrainer) -> dict[str, float]:
    """Write what was trained, and measure its images."""
    config, device, auxiliaries = context.config, context.device, trainer.auxiliaries
    save_module(trainer.averaged, context.folder / "generator.safetensors")
    save_module(trainer.discriminator, context.folder / "discriminator.safetensors")
    if trainer.averaged_encoder is not None:
        save_module(trainer.averaged_encoder, context.folder / "encoder.safetensors")
    identity = config.attributes[0]
    network = auxiliaries[identity.name]
    quality = measure_triplets(identity, *generated_triplets(trainer.averaged, network, triplets=TRIPLETS, seed=config.seed))
    write_quality(context, {(identity.name, "generated"): quality})
    samples, _ = open_samples(context)
    distances = GanObserver(config, samples, auxiliaries, folder=context.folder, device=device).distances(trainer.averaged)
    return {"generated_separated": quality.separated, "generated_separated_by_margin": quality.separated_by_margin, **distances}


def clear(context: StageContext) -> None:
    """Let go of the checkpoints, when the results are written."""
    TrainingState.clear(context.folder)
