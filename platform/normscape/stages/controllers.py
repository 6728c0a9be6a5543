"""Stage `controllers`: attribute value -> style, and how well it controls the image (thesis II.A.2; figure 6).

Writes:

- `<attribute>.safetensors` for every attribute of kind value;
- `controllability.parquet`: attribute, asked, read (in the attribute's unit; one row a component), identity_distance in [0, 1].
  A number is asked for uniformly over its range, a vector at values that training images have, or where these do not vary
  (what augmentation draws) uniformly, too;
- `sweep.npy`: uint8 (identities, values, C, *S) with `sweep.json`: attribute, values, unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from normscape.config import AttributeConfig
from normscape.datasets.samples import to_uint8
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.controller import Controller, EncodedController
from normscape.networks.generator import Generator
from normscape.stages.core import StageContext
from normscape.stages.files import write_json
from normscape.stages.models import load_auxiliaries, load_encoder, load_generator
from normscape.stages.prepare import open_samples
from normscape.training.auxiliary import value_distance
from normscape.training.checkpoint import TrainingState, save_module
from normscape.training.controllers import generated_values, measure_control, train_controller, value_sweep

SWEEP_IDENTITIES, SWEEP_VALUES = 8, 19


def run(context: StageContext) -> dict[str, float]:
    """Train and measure every controller."""
    config, device = context.config, context.device
    auxiliaries = load_auxiliaries(config, context.inputs["auxiliary"], device)
    generator = load_generator(config, context.inputs["gan"], device)
    known = _known_vectors(context)
    controllers = _controllers(context, generator, auxiliaries)
    columns: dict[str, list[object]] = {"attribute": [], "asked": [], "read": [], "identity_distance": []}
    metrics: dict[str, float] = {}
    for number, attribute in enumerate(config.value_attributes):
        controller = controllers[attribute.name]
        save_module(controller, context.folder / f"{attribute.name}.safetensors")
        measured = measure_control(
            attribute,
            generator,
            controller,
            auxiliaries,
            identity=config.attributes[0].name,
            count=config.controllers.check_samples,
            seed=config.seed,
            known=known.get(attribute.name),
        )
        asked, read = measured["asked"].flatten(), measured["read"].flatten()
        columns["attribute"] += [attribute.name] * len(asked)
        columns["asked"] += asked.tolist()
        columns["read"] += read.tolist()
        columns["identity_distance"] += measured["identity_distance"].repeat_interleave(attribute.output_dim).tolist()
        metrics |= {
            f"{attribute.name}_error": value_distance(measured["asked"], measured["read"]).mean().item(),
            f"{attribute.name}_identity_distance": measured["identity_distance"].mean().item(),
        }
        if number == 0:
            sweep = value_sweep(
                generator, controller, identities=SWEEP_IDENTITIES, values=sweep_values(attribute), seed=config.seed
            )
            np.save(context.folder / "sweep.npy", to_uint8(sweep).cpu().numpy())
            described = {"attribute": attribute.name, "values": sweep_values(attribute)[:, 0].tolist(), "unit": attribute.unit}
            write_json(context.folder / "sweep.json", described)
    pq.write_table(pa.table(columns), context.folder / "controllability.parquet")
    for name in controllers:
        TrainingState.clear(_checkpoints(context, name))
    return metrics


def _known_vectors(context: StageContext) -> dict[str, torch.Tensor]:
    """Vector-valued attributes to the values `(N, D)` of the training images, where these vary: no other may have an image."""
    vectors = [a for a in context.config.value_attributes if a.output_dim > 1]
    if not vectors:
        return {}
    samples, _ = open_samples(context)
    values = {a.name: samples.values[a.column or ""] for a in vectors}
    return {name: value for name, value in values.items() if (value != value[:1]).any()}


def _controllers(
    context: StageContext, generator: Generator, auxiliaries: Mapping[str, AuxiliaryNetwork]
) -> Mapping[str, Controller]:
    """Value attributes to their controllers: from the encoder, or trained on generated images."""
    config, settings = context.config, context.config.controllers
    if settings.source == "encoder":
        encoder = load_encoder(config, context.inputs["gan"], context.device)
        assert encoder is not None  # checked by the schema
        return {a.name: EncodedController.of(a, config, encoder, generator) for a in config.value_attributes}
    networks = {a.name: auxiliaries[a.name] for a in config.value_attributes}
    styles, values = generated_values(generator, networks, count=settings.samples, seed=config.seed, purpose="controllers")
    return {
        a.name: train_controller(
            a,
            config,
            styles[:, generator.subspace_slice(a.name)],
            values[a.name],
            folder=_checkpoints(context, a.name),
            digest=context.key,
            device=context.device,
            recorder=context.recorder,
        )
        for a in config.value_attributes
    }


def _checkpoints(context: StageContext, name: str) -> Path:
    return context.folder / "checkpoints" / name


def sweep_values(attribute: AttributeConfig) -> torch.Tensor:
    """Evenly spaced values over the attribute's range, `(V, D)`; a vector moves along its diagonal."""
    line = torch.linspace(attribute.value_min, attribute.value_max, SWEEP_VALUES)
    return line[:, None].expand(-1, attribute.output_dim)
