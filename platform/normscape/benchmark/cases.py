"""The cases: what is timed for each configuration, with random weights and synthetic images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from normscape.benchmark.reference import ReferenceTrainer, looped_contrastive_loss
from normscape.benchmark.timing import Action, Timing, describe_machine, measure, total
from normscape.config import Config
from normscape.datasets.chairs import ChairRenderer, chair_names, load_chair
from normscape.datasets.samples import SampleSet, StoredImages, load_samples
from normscape.inversion.projector import Projector
from normscape.inversion.style_space import WhitenedSubspace
from normscape.losses.contrastive import contrastive_loss
from normscape.losses.reconstruction import perceptual_features
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator, draw_latents
from normscape.training.batches import draw_masks, draw_real
from normscape.training.gan import GanTrainer
from normscape.training.seeding import seeded

FAST, REFERENCE = "fast", "reference"
PROJECTION_BATCHES = (1, 32, 128)
PROJECTION_STEPS = 5
"""Steps of one timed projection; its start and end, about half a step's work, are part of it."""
RENDER_SIZES = (32, 64)
RENDERED_CHAIRS, RENDERED_ANGLES = 6, 4
BATCHED_SHARE = "projection: an image in a batch of 128 / alone"
STEP_SPEEDUP = "training step: reference / fast"
PATCHES_SHARE = "first training step / cutting and augmenting its patches"
PATCH_SUBJECTS, PATCHES_PER_SUBJECT = 12, 256
TARGETS: dict[tuple[str, str], tuple[str, float]] = {
    ("chairs-cpu", BATCHED_SHARE): ("at most", 0.25),
    ("chairs-gpu", STEP_SPEEDUP): ("at least", 2.5),
    ("brain-cpu", PATCHES_SHARE): ("at least", 3.0),
}
"""(configuration, ratio) -> bound, on two CPU cores."""


@dataclass(frozen=True)
class Row:
    """One measured action: `timing` is of one step or call, for `batch` images; `reference` is the straightforward form's."""

    config: str
    case: str
    batch: int
    timing: Timing
    reference: Timing | None = None

    @property
    def speedup(self) -> float | None:
        """How many times slower the straightforward form is."""
        return None if self.reference is None else self.reference.median / self.timing.median


@dataclass(frozen=True)
class Ratio:
    """A quotient of two medians of the same run, and its target where there is one."""

    config: str
    name: str
    value: float
    bound: str = ""
    target: float | None = None

    @classmethod
    def of(cls, config: Config, name: str, value: float, device: torch.device) -> Ratio:
        """A ratio with its target; targets are set for the CPU."""
        bound, target = TARGETS.get((config.name, name), ("", None)) if device.type == "cpu" else ("", None)
        return cls(config.name, name, value, bound, target)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.bound == "at most" else self.value >= self.target


@dataclass
class Results:
    """Everything one run of the benchmark has measured."""

    machine: dict[str, str | int]
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    """(configuration, case, why it was not measured)"""


class Skipped(Exception):
    """A case that cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Bench:
    """One configuration's measurements.

    Attributes:
        config: the experiment.
        device: where to compute.
        repeats: measurements of each action.
        results: receives rows and ratios.
    """

    config: Config
    device: torch.device
    repeats: int
    results: Results

    def compare(self, case: str, batch: int, actions: Mapping[str, Action]) -> Row:
        """Time an action, and its reference form where there is one; keep and return the row."""
        timings = measure(actions, device=self.device, repeats=self.repeats)
        return self.keep(case, batch, timings[FAST], timings.get(REFERENCE))

    def keep(self, case: str, batch: int, timing: Timing, reference: Timing | None = None) -> Row:
        """Add a row to the results."""
        row = Row(self.config.name, case, batch, timing, reference)
        self.results.rows.append(row)
        return row

    def ratio(self, name: str, value: float) -> None:
        """Add a ratio to the results."""
        self.results.ratios.append(Ratio.of(self.config, name, value, self.device))

    def auxiliaries(self, *, fold: bool = True) -> dict[str, AuxiliaryNetwork]:
        """Frozen auxiliary networks with random weights, in inference form unless told otherwise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = {a.name: AuxiliaryNetwork.from_config(a, self.config).to(self.device) for a in self.config.attributes}
        for network in networks.values():
            if fold:
                network.fold()
            else:
                freeze(network)
        return networks

    def samples(self, count: int) -> SampleSet:
        """Images of noise: uint8 `(count, C, *S)`."""
        config = self.config
        shape = (count, config.image_channels, *(config.image_size,) * config.dims)
        images = torch.randint(0, 256, shape, generator=seeded(0, "benchmark"), dtype=torch.uint8)
        values = {
            a.column or "": torch.empty(count, a.output_dim).uniform_(a.value_min, a.value_max, generator=seeded(0, a.name))
            for a in config.value_attributes
        }
        return SampleSet(StoredImages(images), torch.zeros(count, dtype=torch.long), ("noise",), values, torch.arange(count))

    def masks(self, count: int) -> Tensor | None:
        """Three quarters of each brain patch, `(count, 1, *S)`; None for images without masks."""
        config = self.config
        if config.data.source != "brain":
            return None
        masks = torch.ones(count, 1, *(config.image_size,) * config.dims, dtype=torch.bool, device=self.device)
        masks[..., : config.image_size // 4] = False
        return masks


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
    r1 = compare("R1 phase", batch, lambda t: t.r1_phase(real))
    compare("generator phase", batch, lambda t: t.generator_phase(late, real, values, masks))
    if settings.warmup_steps:
        compare("warm-up step", batch, lambda t: t.generator_phase(0, real, values, masks))
    path = compare("path length phase", batch // settings.path_length_batch_shrink, lambda t: t.path_length_phase(late))

    bench.ratio(STEP_SPEEDUP, _speedup(step))
    parts = [(step, 1.0)]
    if settings.r1_gamma > 0 and settings.r1_interval > 1:
        parts.append((r1, 1 / settings.r1_interval))
    if settings.path_length_weight > 0 and settings.path_length_interval > 1:
        parts.append((path, 1 / settings.path_length_interval))
    average = bench.keep(
        "training step with its share of the regularisers",
        batch,
        total([(row.timing, weight) for row, weight in parts]),
        total([(row.reference, weight) for row, weight in parts if row.reference is not None]),
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


def projection(bench: Bench) -> None:
    """One projection step at several batch sizes."""
    config, device = bench.config, bench.device
    changes = {"steps": PROJECTION_STEPS, "start": "mean"}  # where it starts makes no difference to a step
    short = config.model_copy(update={"projection": config.projection.model_copy(update=changes)})
    projector = random_projector(short, bench.auxiliaries(), device)
    actions = {}
    for batch in PROJECTION_BATCHES:
        images = bench.samples(batch).batch(torch.arange(batch)).to(device)
        values = {
            a.name: torch.empty(batch, a.output_dim).uniform_(a.value_min, a.value_max, generator=seeded(0, a.name))
            for a in config.value_attributes
        }
        actions[str(batch)] = partial(projector.project, images, values, bench.masks(batch))
    timings = measure(actions, device=device, repeats=bench.repeats, units=dict.fromkeys(actions, PROJECTION_STEPS))
    alone = timings[str(PROJECTION_BATCHES[0])].median / PROJECTION_BATCHES[0]
    for batch in PROJECTION_BATCHES:
        bench.keep("projection step", batch, timings[str(batch)])
        if batch > 1:
            name = BATCHED_SHARE.replace("128", str(batch))
            bench.ratio(name, timings[str(batch)].median / batch / alone)


def random_projector(config: Config, auxiliaries: Mapping[str, AuxiliaryNetwork], device: torch.device) -> Projector:
    """A projector with random weights and the style space that belongs to them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        generator = Generator.from_config(config).to(device)
        freeze(generator)
        controllers = {a.name: Controller.from_config(a, config).to(device) for a in config.value_attributes}
        for controller in controllers.values():
            freeze(controller)
        styles = generator.mapping(draw_latents(1024, generator, seeded(0, "styles"))).cpu()
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    features = perceptual_features(config.projection, auxiliaries[config.attributes[0].name], device)
    return Projector(config, generator, controllers, space, features)


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
            raise Skipped(f"{error.name or 'a package'} is not installed") from error

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
    changes = {"root": None, "simulated_subjects": PATCH_SUBJECTS, "patches_per_subject": PATCHES_PER_SUBJECT}
    samples = load_samples(config.data.model_copy(update=changes), config.image_size, seed=config.seed)
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


CASES: dict[str, Callable[[Bench], None]] = {
    "training": training,
    "contrastive": contrastive,
    "auxiliary": auxiliary,
    "projection": projection,
    "rendering": rendering,
    "patches": patches,
}
"""Name, as given to `--only`, to what it measures."""


def benchmark(
    configs: Sequence[Config],
    *,
    device: torch.device,
    only: Sequence[str] = (),
    repeats: int = 5,
    say: Callable[[str], None] = print,
) -> Results:
    """Measure the cases of each configuration.

    Args:
        configs: experiments.
        device: where to compute.
        only: names of cases; all when empty.
        repeats: measurements of each action.
        say: told what comes next.

    Returns:
        All measurements, and what could not be measured.
    """
    results = Results(describe_machine(device))
    for config in configs:
        bench = Bench(config, device, repeats, results)
        for name, case in CASES.items():
            if only and name not in only:
                continue
            say(f"{config.name}: {name}")
            try:
                case(bench)
            except Skipped as reason:
                results.skipped.append((config.name, name, str(reason)))
    return results


def _speedup(row: Row) -> float:
    assert row.speedup is not None
    return row.speedup
