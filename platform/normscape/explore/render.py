"""Pictures of subjects at asked values of an attribute: many values at once, kept for the next who asks."""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from normscape.datasets.samples import to_uint8
from normscape.errors import DataError
from normscape.explore.controls import Control, controls_of, values_at
from normscape.explore.slab import PLANES, Slab
from normscape.explore.subjects import Subjects
from normscape.explore.trained import Trained
from normscape.networks.generator import draw_latents
from normscape.training.controllers import with_value
from normscape.training.seeding import seeded

MOST_FRAMES = 32
"""Values in one request."""
MOST_SEED = 2**31 - 1
KEPT_BYTES = 64 << 20
"""Of frames that are remembered."""
_WHO = re.compile(r"(seed|subject):(\d{1,10})")

Frame = NDArray[np.uint8]
"""(H, W, 3)."""


class Renderer:
    """Makes frames; one request at a time, so that two people never share the memory of one machine twice over.

    Args:
        trained: the system.
    """

    def __init__(self, trained: Trained) -> None:
        self.config, self.trained = trained.config, trained
        self.controls: dict[str, Control] = controls_of(trained.config)
        self.slab = Slab.of(trained)
        self.subjects = Subjects.of(trained)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Frame] = OrderedDict()
        self._bytes = 0
        self.made = 0

    @property
    def planes(self) -> tuple[str, ...]:
        """Planes that a person can choose from; none where images are flat."""
        return PLANES if self.slab is not None else ()

    def strip(self, who: str, control: str, values: Sequence[float], asked: Mapping[str, float], plane: str) -> bytes:
        """A PNG of frames side by side.

        Args:
            who: `seed:N`, a generated subject, or `subject:N`, one of the run's own images.
            control: the attribute that moves.
            values: its values, a frame each.
            asked: values of other attributes.
            plane: of a brain.

        Raises:
            DataError: nobody of this name, no such attribute, plane or value, or too many at once.
        """
        if not 1 <= len(values) <= MOST_FRAMES:
            raise DataError(f"values: expected 1 to {MOST_FRAMES}, found {len(values)}")
        if control not in self.controls:
            raise DataError(f"{control}: no slider of this model; it has {', '.join(self.controls) or 'none'}")
        if self.planes and plane not in self.planes:
            raise DataError(f"plane: choose {', '.join(self.planes)}")
        number = self.checked(who)
        places = [round(self.controls[control].checked(value), 6) for value in values]
        others = tuple(sorted((name, value) for name, value in asked.items() if name != control))
        keys = [(who, control, place, others, plane if self.planes else "") for place in places]
        with self._lock:
            missing = [i for i, key in enumerate(keys) if key not in self._kept]
            fresh: dict[tuple[Any, ...], Frame] = {}
            if missing:
                wanted = [dict(others) | {control: places[i]} for i in missing]
                fresh = dict(zip((keys[i] for i in missing), self._frames(who, number, wanted, plane), strict=True))
                self.made += len(missing)
            frames = [fresh[key] if key in fresh else self._kept[key] for key in keys]
            for key, frame in zip(keys, frames, strict=True):
                self._keep(key, frame)
        return to_png(np.concatenate(frames, axis=1))

    def original(self, who: str) -> bytes:
        """A PNG of one of the run's own images as it is.

        Raises:
            DataError: nobody of this name.
        """
        if self.subjects is None or not who.startswith("subject:"):
            raise DataError(f"{who}: not one of the run's own images")
        return to_png(picture(self.subjects.original(self.checked(who))))

    def checked(self, who: str) -> int:
        """The number in `seed:N` or `subject:N`.

        Raises:
            DataError: nobody of this name.
        """
        found = _WHO.fullmatch(who)
        if found is None or int(found[2]) > MOST_SEED:
            raise DataError("who: expected seed:N or subject:N")
        number = int(found[2])
        if found[1] == "subject" and (self.subjects is None or number not in self.subjects):
            raise DataError(f"{who}: not one of the images that this run shows")
        return number

    @torch.no_grad()
    def _frames(self, who: str, number: int, wanted: Sequence[Mapping[str, float]], plane: str) -> list[Frame]:
        values = [values_at(self.config, self.controls, one) for one in wanted]
        batch = {name: torch.cat([one[name] for one in values]) for name in values[0]}
        if who.startswith("subject:"):
            assert self.subjects is not None
            moved = {name: batch[name] for name in self.controls}
            return [picture(image) for image in to_uint8(self.subjects.at(number, moved)).cpu()]
        generator = self.trained.generator
        z = draw_latents(1, generator, seeded(self.config.seed, "explore", number))
        if self.slab is not None:
            return [self.slab.frame(z[0], one, plane) for one in values]
        styles = generator.mapping(z).expand(len(wanted), -1)
        for name, controller in self.trained.controllers.items():
            styles = with_value(generator, controller, styles, batch[name].to(styles.device))
        return [picture(image) for image in to_uint8(generator.synthesize(styles)).cpu()]

    def _keep(self, key: tuple[Any, ...], frame: Frame) -> None:
        if key not in self._kept:
            self._bytes += frame.nbytes
        self._kept[key] = frame
        self._kept.move_to_end(key)
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def picture(image: Tensor) -> Frame:
    """A uint8 image `(C, *S)`, C of 1 or 3, as (H, W, 3); of a volume its middle slice, turned as in `datasets.slices`."""
    plane = image if image.ndim == 3 else image[:, image.shape[1] // 2].flip(1, 2)
    array = plane.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(array.repeat(3, axis=2) if array.shape[2] == 1 else array)


def to_png(frame: Frame) -> bytes:
    """A picture (H, W, 3) as a PNG."""
    with io.BytesIO() as file:
        Image.fromarray(frame).save(file, "PNG", compress_level=3)
        return file.getvalue()
