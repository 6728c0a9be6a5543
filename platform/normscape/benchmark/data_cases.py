"""Cases of the data: rendering, cutting patches, preprocessing."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch

from normscape.benchmark.bench import FAST, Bench, Skipped
from normscape.benchmark.results import PATCHES_SHARE, PREPARING_MEMORY, PREPARING_SECONDS
from normscape.benchmark.timing import measure, measure_long
from normscape.config import Config
from normscape.datasets.chairs import ChairRenderer, chair_names, load_chair
from normscape.datasets.cohort import Scan
from normscape.datasets.patches import simulated_spacing
from normscape.datasets.samples import SampleSet, load_samples
from normscape.datasets.simulated import simulate_cohort
from normscape.training.batches import draw_masks, draw_real
from normscape.training.gan import GanTrainer

RENDER_SIZES = (32, 64)
RENDERED_CHAIRS, RENDERED_ANGLES = 6, 4
PATCH_SUBJECTS, PATCHES_PER_SUBJECT = 12, 256
SCAN_SPACING_MM = 1.0
"""Of the scan that is preprocessed: 180x216x180 voxels, about as many as a usual T1 has of a head without its air."""


def rendering(bench: Bench) -> None:
    """One chair image on one core, over a few chairs and angles; building the scenes is not part of it."""
    data = bench.config.data
    if data.source != "chairs":
        raise Skipped(f"images come from {data.source}, nothing is rendered")
    names = chair_names()
    chosen = range(0, len(names), math.ceil(len(names) / RENDERED_CHAIRS))
    angles = torch.linspace(data.angle_min_degrees, data.angle_max_degrees, RENDERED_ANGLES).tolist()
    cpu = torch.device("cpu")
    for size in RENDER_SIZES:
        try:
            renderers = [ChairRenderer(load_chair(i), image_size=size, supersample=data.supersample) for i in chosen]
        except ImportError as error:
            raise Skipped.without(error) from error

        def render(renderers: Sequence[ChairRenderer] = renderers) -> None:
            for renderer in renderers:
                for angle in angles:
                    renderer.render(angle)

        images = len(renderers) * len(angles)
        timing = measure({FAST: render}, device=cpu, repeats=bench.repeats, units={FAST: images})[FAST]
        bench.keep(f"rendering at {size} px, {data.supersample}x{data.supersample} rays a pixel", 1, timing)


def patches(bench: Bench) -> None:
    """Cutting and augmenting the patches of one training step, from a small simulated cohort, beside the step itself."""
    config, device = bench.config, bench.device
    if config.data.source != "brain":
        raise Skipped(f"images come from {config.data.source}, no patches are cut")
    samples = small_cohort(config)
    batch = config.gan.batch_size

    def draw() -> None:
        draw_real(samples, config, 0)
        draw_masks(samples, config, 0)

    row = bench.compare("cutting and augmenting patches", batch, {FAST: draw})
    trainer = GanTrainer(config, bench.auxiliaries(), device)
    real, values = draw_real(samples, config, 0)
    masks = draw_masks(samples, config, 0)
    known = {name: value.to(device) for name, value in values.items()}
    step = measure({FAST: lambda: trainer.step(real.to(device), 0, known, masks)}, device=device, repeats=bench.repeats)[FAST]
    bench.ratio(PATCHES_SHARE, step.median / row.timing.median)


def small_cohort(config: Config) -> SampleSet:
    """Patches of a few simulated scans, which are made on first use and kept in the cache.

    Raises:
        Skipped: scikit-learn, which measures their contrast, is not installed.
    """
    changes = {"root": None, "simulated_subjects": PATCH_SUBJECTS, "patches_per_subject": PATCHES_PER_SUBJECT}
    try:
        return load_samples(config.data.model_copy(update=changes), config.image_size, seed=config.seed)
    except ImportError as error:
        raise Skipped.without(error) from error


def preprocessing(bench: Bench) -> None:
    """One simulated scan of 1 mm with its mask: N4, registration to SRI24, masks, resampling, files; always on the CPU."""
    data = bench.config.data
    if data.source != "brain":
        raise Skipped(f"images come from {data.source}, nothing is preprocessed")
    try:
        sitk, _ = (import_module(name) for name in ("SimpleITK", "nibabel"))
    except ImportError as error:
        raise Skipped.without(error) from error
    from normscape.preprocessing.atlas import load_atlas
    from normscape.preprocessing.scan import prepare_scan
    from normscape.preprocessing.settings import PreprocessingSettings

    settings = PreprocessingSettings(spacing_mm=simulated_spacing(data.spacing_mm), strip="mask")
    atlas = load_atlas(settings.spacing_mm)
    with tempfile.TemporaryDirectory(prefix="normscape-benchmark-") as text:
        folder = Path(text)
        simulate_cohort(folder, subjects=1, seed=bench.config.seed, spacing_mm=SCAN_SPACING_MM)
        [t1], [mask] = ([*(folder / kind).iterdir()] for kind in ("t1", "mask"))
        scan, attempt, cores = Scan(t1, "benchmark", mask=mask), count(), []

        def prepare() -> None:
            began = time.process_time()
            # a folder each time: what is there already is not done again
            done = prepare_scan(scan, settings, atlas, folder / f"prepared-{next(attempt)}")
            cores.append(time.process_time() - began)
            if not done.good:
                raise Skipped(f"the simulated scan cannot be prepared ({done.step}): {done.reason}")

        with _threads(sitk, torch.get_num_threads()):
            timing = measure_long(prepare, device=torch.device("cpu"), repeats=bench.repeats)
    bench.keep(f"preprocessing a scan of {SCAN_SPACING_MM:g} mm to {settings.spacing_mm} mm, stripping apart", 1, timing)
    bench.note(prepare_core_seconds=statistics.median(cores))
    bench.ratio(PREPARING_SECONDS, timing.median)
    bench.ratio(PREPARING_MEMORY, timing.peak_bytes / 2**30)


@contextmanager
def _threads(sitk: Any, threads: int) -> Iterator[None]:
    """SimpleITK with as many threads as torch has."""
    process = sitk.ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(threads)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)
