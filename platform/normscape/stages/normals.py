"""Stage `normals`: what normal training patches leave unexplained at each place of the atlas. Only for data source brain.

Of whole scans, which lie upon each other, the places are the voxels of an image.

Writes `normals.safetensors` (see `normscape.inversion.normals`). Patches are training subjects' own, unchanged; nothing is
optimised, so thousands of them take seconds.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from normscape.datasets.patches import PatchSource
from normscape.inversion.normals import CONDITIONS, TEXTURE, NormalsBuilder, ScaleBuilder, log_deviation, middle_frame
from normscape.losses.masked import within
from normscape.stages.core import StageContext
from normscape.stages.models import NORMALS_NAME, load_projector
from normscape.stages.prepare import open_samples
from normscape.training.seeding import seeded

SCALED_PATCHES = 1024
"""Patches that tell how far means over neighbourhoods leave the usual: a handful of numbers, which need no more."""


def run(context: StageContext) -> dict[str, float]:
    """Rebuild normal patches without optimisation, and gather their residuals and their own texture.

    Writes no file where patches are no whole scans and no attribute is the position: then nobody knows where a patch lies.
    """
    config, place = context.config, context.config.position
    if place is None and not config.whole_scans:
        return {}
    samples, _ = open_samples(context)
    source = samples.images
    assert isinstance(source, PatchSource)  # the stage exists for brains alone
    projector = load_projector(config, context.inputs, context.device)
    builder = (
        NormalsBuilder((source.side,) * 3, middle_frame(source.side))
        if place is None
        else NormalsBuilder(source.cohort.shape, source.position_frame())
    )
    chosen = torch.randperm(len(samples), generator=seeded(config.seed, "normals"))[: config.normals.samples]
    total: dict[str, float] = dict.fromkeys(projector.unoptimised, 0.0)
    done = 0
    for index in chosen.split(config.projection.batch_size):
        images, known = samples.draw(index)
        masks = samples.masks(index)
        values = {a.name: known[a.column or ""] for a in config.value_attributes}
        position = torch.zeros(len(index), 3) if place is None else values[place.name]
        texture, counts = log_deviation(images, masks)
        builder.add(TEXTURE, texture, position, counts)
        for kind in projector.unoptimised:
            rebuilt = within(projector.rebuilt_at_start(kind, images, values).cpu(), images, masks)
            builder.add(kind, images - rebuilt, position, masks)
            total[kind] += float((images - rebuilt).abs().mean((1, 2, 3, 4)).sum())
        done += len(index)
        context.recorder.progress(done, len(chosen), "patch")
    scales = ScaleBuilder(builder.build(config.normals.smoothing_mm / config.data.spacing_mm))
    for index in chosen[:SCALED_PATCHES].split(config.projection.batch_size):
        images, known = samples.draw(index)
        values = {a.name: known[a.column or ""] for a in config.value_attributes}
        residual = images - projector.rebuilt_at_start(CONDITIONS, images, values).cpu()
        position = torch.zeros(len(index), 3) if place is None else values[place.name]
        scales.add(CONDITIONS, residual, position, samples.masks(index))
    normals = scales.build()
    save_file(normals.to_tensors(), context.folder / NORMALS_NAME)
    return {f"{kind}_l1": value / done for kind, value in total.items()}
