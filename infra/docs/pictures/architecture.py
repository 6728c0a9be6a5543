"""Diagrams of how the package is built and run: layers and stages, a cluster, the registry, and the method itself."""

from __future__ import annotations

import itertools
from pathlib import Path

from infra.docs.pictures.sheet import Box, Colour, Sheet


def design(path: Path) -> None:
    """docs/design.md: layers on the left, stages on the right."""
    sheet = Sheet(8.0, 4.9)
    sheet.text(2.0, 4.7, "Layers: imports run downward", size=10, bold=True)
    layers: list[tuple[str, str, Colour]] = [
        ("report · explore · cli · jobs", "commands, pages, entry points", "orange"),
        ("distributed · tracking", "Ray, MLflow", "orange"),
        ("stages · evaluation · benchmark", "from here on down: no Ray, no MLflow", "blue"),
        ("training · inversion · scoring · baselines", "loops, projection, detectors", "green"),
        ("networks · losses · datasets · preprocessing", "plain parts, 2D and 3D in one", "green"),
        ("config", "one schema for all", "grey"),
    ]
    boxes = [sheet.box(0.2, 3.9 - 0.74 * i, 3.6, 0.52, title, text, colour) for i, (title, text, colour) in enumerate(layers)]
    for upper, lower in itertools.pairwise(boxes):
        sheet.arrow(upper.bottom, lower.top)
    sheet.text(6.1, 4.7, "Stages: a folder each, up to date by its key", size=10, bold=True)
    rows = [("prepare", "auxiliary"), ("gan", "controllers"), ("latents", "normals"), ("project", "score"), ("brains", "report")]
    does = {
        "prepare": "images, split by subject", "auxiliary": "M_k reads attribute k", "gan": "generator, encoder",
        "controllers": "value to style", "latents": "whitened style space", "normals": "usual residuals (brain)",
        "project": "image to style", "score": "detectors, thresholds", "brains": "whole brains, maps", "report": "the page",
    }  # fmt: skip
    place: Box | None = None
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            box = sheet.box(4.3 + 1.9 * j, 3.9 - 0.74 * i, 1.65, 0.52, name, does[name], "blue")
            if place is not None and j == 1:
                sheet.arrow(place.right, box.left)
            elif place is not None:
                sheet.arrow((place.bottom[0], place.bottom[1]), (box.top[0] + 0.4, box.top[1]))
            place = box
    sheet.text(6.1, 0.5, "key = digest of name, version, the sections of the", muted=True)
    sheet.text(6.1, 0.34, "configuration that it reads, and the keys of its inputs", muted=True)
    sheet.save(path)


def cluster(path: Path) -> None:
    """docs/cluster.md: who runs what."""
    sheet = Sheet(8.0, 4.0)
    you = sheet.box(0.2, 2.55, 1.6, 0.9, "you", "ray job submit\nkubectl create", "grey")
    sheet.box(2.25, 1.85, 5.55, 2.05, colour="grey")
    sheet.text(5.0, 3.75, "Ray cluster", bold=True)
    head = sheet.box(
        2.45, 2.1, 1.75, 1.4, "head", "entry point jobs/run.py\nprepare, controllers,\nlatents, score, report", "blue"
    )
    workers = sheet.box(4.9, 2.9, 2.7, 0.68, "workers  --workers 4", "train auxiliary networks and GAN", "green")
    actors = sheet.box(4.9, 2.0, 2.7, 0.68, "actors  --actors 1-8", "project, shard after shard", "green")
    sheet.box(2.25, 0.35, 3.6, 0.85, "shared run folder  --runs-dir", "runs/NAME/STAGE-KEY/, written aside and renamed", "yellow")
    sheet.box(6.2, 0.35, 1.6, 0.85, "MLflow", "runs, metrics,\nregistered models", "pink")
    sheet.arrow(you.right, (head.left[0], you.right[1]))
    sheet.arrow((head.right[0], 3.24), workers.left)
    sheet.arrow((head.right[0], 2.34), actors.left)
    sheet.arrow((3.3, 2.1), (3.3, 1.2))
    sheet.arrow((5.3, 2.0), (5.3, 1.2))
    sheet.arrow((6.95, 1.85), (6.95, 1.2))
    sheet.text(4.3, 1.5, "everybody reads and writes", muted=True)
    sheet.text(1.0, 1.15, "A laptop is the same\nwith one machine\nand local folders.", muted=True)
    sheet.save(path)


def registry(path: Path) -> None:
    """docs/registry.md: the life of a registered system."""
    sheet = Sheet(8.0, 2.75)
    run = sheet.box(0.15, 1.6, 1.35, 0.8, "finished run", "runs/NAME", "grey")
    challenger = sheet.box(2.3, 1.6, 1.45, 0.8, "challenger", "a new version", "blue")
    champion = sheet.box(5.0, 1.6, 1.4, 0.8, "champion", "what is used", "green")
    use = sheet.box(6.75, 1.6, 1.1, 0.8, "score, serve", "a new scan", "grey")
    bundle = sheet.box(5.0, 0.2, 1.4, 0.8, "bundle", "NAME.zip\nwith checksums", "yellow")
    elsewhere = sheet.box(2.3, 0.2, 1.45, 0.8, "elsewhere", "checked, loaded, tried;\nthen a challenger", "orange")
    sheet.arrow(run.right, challenger.left, "register", shift=(0, 0.14))
    sheet.arrow(challenger.right, champion.left, "promote: better\non the locked test", shift=(0, 0.24))
    sheet.arrow(champion.right, use.left)
    sheet.arrow(champion.bottom, bundle.top, "export", shift=(0.3, 0))
    sheet.arrow(bundle.left, elsewhere.right, "import", shift=(0, 0.14))
    sheet.arrow(elsewhere.top, challenger.bottom)
    sheet.save(path)


def method(path: Path) -> None:
    """docs/method.md: sub-spaces, control and projection."""
    sheet = Sheet(8.0, 3.6)
    names: list[tuple[str, Colour]] = [("identity", "blue"), ("age", "orange"), ("position", "green"), ("other", "grey")]
    sheet.text(0.85, 3.4, "latent z", bold=True)
    sheet.text(3.85, 3.4, "style w", bold=True)
    styles = []
    for i, (name, colour) in enumerate(names):
        y = 2.75 - 0.62 * i
        latent = sheet.box(0.2, y, 1.3, 0.45, name, colour=colour)
        mapping = sheet.box(1.9, y + 0.05, 0.85, 0.35, text=f"f: z{'¹²³⁴'[i]} → w{'¹²³⁴'[i]}")
        style = sheet.box(3.2, y, 1.3, 0.45, name, colour=colour)
        styles.append(style)
        sheet.arrow(latent.right, mapping.left)
        sheet.arrow(mapping.right, style.left)
    sheet.axes.plot([4.6, 4.68, 4.68, 4.6], [0.9, 0.9, 3.2, 3.2], color="#565c64", linewidth=1.2)
    generator = sheet.box(5.0, 1.6, 1.0, 0.9, "G", "generator", "pink")
    image = sheet.box(6.5, 1.6, 1.3, 0.9, "image", "rebuilt", "yellow")
    given = sheet.box(6.5, 0.2, 1.3, 0.7, "new image", "of a subject", "yellow")
    sheet.arrow((4.7, 2.05), generator.left)
    sheet.arrow(generator.right, image.left)
    sheet.arrow(image.bottom, given.top, "residual", shift=(-0.35, 0))
    known = sheet.box(0.2, 0.2, 1.55, 0.45, "known: age, place", colour="orange")
    controller = sheet.box(2.15, 0.2, 1.2, 0.45, "controllers", colour="orange")
    sheet.arrow(known.right, controller.left)
    sheet.axes.plot([2.98, 2.98], [controller.top[1], styles[1].left[1] - 0.12], color="#565c64", linewidth=1.2, linestyle="--")
    for style in styles[1:3]:
        sheet.arrow((2.96, style.left[1] - 0.12), (style.left[0] + 0.02, style.left[1] - 0.12))
    sheet.arrow(given.left, (styles[3].right[0] - 0.2, styles[3].bottom[1]), bend=-0.12, dashed=True)
    sheet.text(4.75, 0.18, "projection seeks identity and other", muted=True)
    sheet.text(6.4, 3.15, "training: a contrastive loss makes each\nsub-space answer for its attribute alone", muted=True)
    sheet.save(path)
