"""Which figures the page shows, with their captions; rendered once for light and once for dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from normscape.config import AttributeConfig
from normscape.report import curve, detection, figures, pictures
from normscape.report.source import Source
from normscape.report.style import DARK, LIGHT, Theme, on_white, png
from normscape.report.words import detector_name, title

MAX_PICTURE_BYTES = 600_000
"""Larger sample grids are made smaller."""


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    name: str
    """File name and anchor."""
    section: str
    make: Callable[[Theme], Figure | None]
    caption: str
    alt: str
    needs: str
    """The file it is made of, named when that is missing."""
    wide: bool = False
    """Takes the whole width of the text."""


@dataclass(frozen=True)
class Shown:
    """A rendered figure; images are data URIs, empty where the file is missing."""

    name: str
    caption: str
    alt: str
    needs: str
    wide: bool
    light: str = ""
    dark: str = ""
    size: tuple[int, int] = field(default=(0, 0))


def render(plot: Plot, folder: Path) -> Shown:
    """Draw a figure in both themes; the light one is also written to `folder` on white."""
    images = []
    for theme in (LIGHT, DARK):
        figure = plot.make(theme)
        if figure is None:
            return Shown(plot.name, plot.caption, plot.alt, plot.needs, plot.wide)
        images.append(png(figure))
    folder.mkdir(parents=True, exist_ok=True)
    flat = on_white(images[0])
    flat.save(folder / f"{plot.name}.png")
    return Shown(plot.name, plot.caption, plot.alt, plot.needs, plot.wide, data_uri(images[0]), data_uri(images[1]), flat.size)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Bytes as an address that needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture_file(path: Path) -> str:
    """An image file as a data URI, as JPEG when it is large."""
    data = path.read_bytes()
    if len(data) <= MAX_PICTURE_BYTES:
        return data_uri(data)
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((1400, 1400))
    image.save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def plots(source: Source) -> Iterator[Plot]:
    """All figures of the page, in order."""
    config = source.config
    losses = {"loss_d": "discriminator", "loss_g": "generator", "contrastive": "contrastive"}
    for attribute in config.attributes:
        yield from _of_attribute(source, attribute)
    yield Plot(
        "training-losses",
        "gan",
        partial(figures.lines, source, "gan", losses, y="loss"),
        "Losses while the GAN trains. Faint: as recorded; strong: running mean.",
        "Curves of the discriminator, generator and contrastive loss over training steps.",
        "gan/metrics.jsonl",
    )
    for name, text in (("frechet", "Frechet distance"), ("kernel", "kernel distance")):
        yield Plot(
            f"training-{name}",
            "gan",
            partial(figures.lines, source, "gan", {name: text}, y=text),
            f"{title(text)} between generated and training images, on the recognition network's features; no FID or KID.",
            f"Curve of the {text} over training steps.",
            "gan/metrics.jsonl",
        )
    for subspace in config.subspaces:
        yield Plot(
            f"explained-{subspace}",
            "explained",
            partial(figures.explained, source, subspace),
            f"Explained variance, sub-space {subspace}.",
            f"Bars of the variance that each principal component of the sub-space {subspace} explains, and their running sum.",
            "latents/explained_variance.parquet",
        )
    if config.network.images:
        yield Plot(
            "training-network",
            "network",
            partial(figures.lines, source, "network", {"loss": "loss"}, y="loss"),
            "Loss of the conditional network, which sees an image beside what is usual there, for image and map together.",
            "Curve of the conditional network's loss over training steps.",
            "network/metrics.jsonl",
        )
    yield Plot(
        "figure-7-projections",
        "project",
        partial(pictures.projections, source),
        "Figure 7. Projection: image, reconstruction, and the reconstruction with its controllable style set to the asked value.",
        "Grid of images, their reconstructions and controlled reconstructions, for train and test, normal and anomalous.",
        "project/inputs.npy",
        wide=True,
    )
    if config.projection.curve_images:
        yield Plot(
            "residual-time",
            "curve",
            partial(curve.figure, source),
            "Residual against time: mean L1 of normal images of subjects that no network was trained on, with 95 % intervals by "
            "subject; at each point the number of steps. The thesis's way is timed over a few steps of one image, multiplied.",
            "Curves of the mean residual over seconds an image, from the encoder's answer and from the mean style.",
            "project/curve.parquet",
            wide=True,
        )
    for split, text in (("test", "test images"), ("train", "training images, as fitted")):
        yield Plot(
            f"figure-8-roc-{split}",
            "roc",
            partial(figures.roc, source, split),
            f"Figure 8. ROC curves, {text}.",
            f"ROC curves of every detector on {split} images; the areas stand in the table above.",
            "score/roc.parquet",
        )
    scored = detection.scored_projections(source)
    for detector in (detection.detectors(scored) if scored is not None else [])[:2]:
        yield Plot(
            f"scores-{detector}",
            "scores",
            partial(figures.scores, scored or {}, detector),
            f"Scores of test images, {detector_name(detector)}.",
            f"Histograms of the {detector_name(detector)}'s scores of normal and anomalous test images.",
            "score/scores.parquet",
        )
    groups = detection.strata(source)
    yield Plot(
        "strata",
        "strata",
        partial(figures.strata, groups),
        "Where detection is hard: anomalous test images by thirds, with 95 % intervals by subject; n counts anomalous images.",
        "Areas under the ROC curve of every detector within strata of blot contrast, blot radius and conditions.",
        "score/strata.parquet",
    )
    yield Plot(
        "importance",
        "strata",
        partial(figures.importance, source),
        "What the forest looks at.",
        "Bars of the forest's feature importances.",
        "score/importance.parquet",
    )


def _of_attribute(source: Source, attribute: AttributeConfig) -> Iterator[Plot]:
    """Figures that every attribute has."""
    name = attribute.name
    measured = source.table("auxiliary", "distances.parquet", "attribute")
    if attribute.kind == "embedding" or (measured is not None and name in measured["attribute"]):
        yield Plot(
            f"figure-4-distances-{name}",
            "auxiliary",
            partial(figures.distances, source, attribute),
            f"Figure 4. Distances of pairs that share the {name} and of others. Dashed: the contrastive loss's thresholds.",
            f"Densities of {name} distances of same and different pairs, for train, test and generated images.",
            "auxiliary/distances.parquet",
        )
    yield Plot(
        f"training-distances-{name}",
        "gan",
        partial(
            figures.lines,
            source,
            "gan",
            {f"distance_same/{name}": f"same {name}", f"distance_different/{name}": f"different {name}"},
            y=f"{name} distance (0 to 1)",
            taus=((attribute.tau_same, "τ⁺"), (attribute.tau_different, "τ⁻")),
            low=0.0,
        ),
        f"{title(name)} distances within generated batches: pairs that share the sub-vector, and all others.",
        f"Curves of the mean {name} distance of same and different pairs over training steps, with both thresholds.",
        "gan/metrics.jsonl",
    )
    if attribute.kind != "value":
        return
    yield Plot(
        f"figure-5-components-{name}",
        "components",
        partial(figures.components, source, attribute),
        f"Figure 5. First two principal components of the {name} styles; colour is the {name} read from the generated images.",
        f"Scatter plot of the first two principal components of the {name} sub-space, coloured by {name}.",
        "latents/scatter.parquet",
    )
    yield Plot(
        f"controllability-{name}",
        "controllers",
        partial(figures.controllability, source, attribute),
        f"Asked {name} against the {name} that the network reads from the generated image.",
        f"Scatter plot of read against asked {name} with the median, a band and the diagonal.",
        "controllers/controllability.parquet",
    )
    yield Plot(
        f"identity-kept-{name}",
        "controllers",
        partial(figures.identity_kept, source, attribute),
        f"How far the identity moves while the {name} is swept.",
        f"Curve of the recognition distance over the asked {name}, with both thresholds of the identity.",
        "controllers/controllability.parquet",
    )
    if source.json("controllers", "sweep.json").get("attribute", name) == name:
        yield Plot(
            f"figure-6-sweep-{name}",
            "sweep",
            partial(pictures.sweep, source),
            f"Figure 6. Generated images: one identity a row, asked {name} above.",
            f"Grid of generated images; every row keeps one identity while the {name} grows from left to right.",
            "controllers/sweep.npy",
            wide=True,
        )
