"""Cases of the projection: a step at several batch sizes, and a whole projection beside the way of the thesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normscape.benchmark.bench import LONGEST_SECONDS, Bench, Skipped
from normscape.benchmark.random_networks import random_projector
from normscape.benchmark.results import BATCHED_SHARE, PROJECTION_GAIN
from normscape.benchmark.timing import Timing, measure, measure_long
from normscape.benchmark.work import count_operations
from normscape.config import Config
from normscape.inversion.projector import Projection

PROJECTION_BATCHES = (1, 32, 128)
PROJECTION_STEPS = 5
"""Steps of one timed projection; its start and end, about half a step's work, are part of it."""
THESIS_STEPS = 1000
"""Steps of a projection in the thesis (II.B.1), which projects one image at a time."""
WHOLE = "whole projection"


def projection(bench: Bench) -> None:
    """One projection step at several batch sizes."""
    short = _projecting(bench.config, steps=PROJECTION_STEPS, start="mean")  # where it starts makes no difference to a step
    projector = random_projector(short, bench.auxiliaries(), bench.device)
    actions = {}
    for batch in PROJECTION_BATCHES:
        images = bench.samples(batch).batch(torch.arange(batch)).to(bench.device)
        actions[str(batch)] = partial(projector.project, images, bench.values(batch), bench.masks(batch))
    timings = measure(actions, device=bench.device, repeats=bench.repeats, units=dict.fromkeys(actions, PROJECTION_STEPS))
    alone = timings[str(PROJECTION_BATCHES[0])].median / PROJECTION_BATCHES[0]
    for batch in PROJECTION_BATCHES:
        timing = timings[str(batch)]
        bench.keep("projection step", batch, timing, operations=count_operations(actions[str(batch)]) / PROJECTION_STEPS)
        if batch > 1:
            bench.ratio(BATCHED_SHARE.replace("128", str(batch)), timing.median / batch / alone)


def whole_projection(bench: Bench) -> None:
    """A batch projected as the stage `project` does it, residuals included; beside it, one image at a time with 1000 steps.

    The configuration's own steps, batch size and start. The other way is measured for a few steps and multiplied.
    """
    config, device = bench.config, bench.device
    settings = config.projection
    auxiliaries = bench.auxiliaries()
    batch = settings.batch_size
    images, values, masks = bench.samples(batch).batch(torch.arange(batch)).to(device), bench.values(batch), bench.masks(batch)

    alone = random_projector(_projecting(config, steps=PROJECTION_STEPS, start="mean"), auxiliaries, device)
    mask = None if masks is None else masks[:1]
    first = {name: value[:1] for name, value in values.items()}
    step = measure(
        {"step": lambda: alone.project(images[:1], first, mask)},
        device=device, repeats=bench.repeats, units={"step": PROJECTION_STEPS},
    )["step"]  # fmt: skip
    thesis = _times(step, THESIS_STEPS)
    bench.keep(f"one image at a time, {THESIS_STEPS} steps from the mean (time of a step x {THESIS_STEPS})", 1, thesis)

    def whole(steps: int) -> Callable[[], Projection]:
        projector = random_projector(_projecting(config, steps=steps), auxiliaries, device, whole=True)
        return partial(projector.project, images, values, masks)

    bench.note(row_bytes=row_bytes(whole(1)(), values))
    one, three = (measure_long(whole(steps), device=device, repeats=2).low for steps in (1, 3))
    expected = one + (settings.steps - 1) * (three - one) / 2
    if expected > LONGEST_SECONDS:
        raise Skipped(f"{settings.steps} steps with {batch} images would take about {expected / 60:.0f} minutes here")
    timing = measure_long(whole(settings.steps), device=device, repeats=bench.repeats)
    bench.keep(f"{WHOLE} ({settings.steps} steps from the {settings.start})", batch, timing)
    bench.ratio(PROJECTION_GAIN, thesis.median / (timing.median / batch))


def row_bytes(projection: Projection, values: Mapping[str, Tensor]) -> float:
    """Bytes of a projected image in the table of projections, uncompressed: conditions, lengths, coordinates and residuals."""
    parts = [*values.values(), *projection.lengths().values(), *projection.coordinates.values(), *projection.residuals.values()]
    return sum(part.nbytes for part in parts) / len(projection.images)


def _times(timing: Timing, factor: float) -> Timing:
    """What takes so many times as long."""
    return Timing(timing.median * factor, timing.low * factor, timing.high * factor, timing.repeats, timing.peak_bytes)


def _projecting(config: Config, **changes: Any) -> Config:
    """The same experiment with other settings of the projection."""
    return config.model_copy(update={"projection": config.projection.model_copy(update=changes)})
