"""Work: floating-point operations of an action, and what the device reaches where nothing stands in its way.

Torch's counter sees convolutions and matrix products alone, a multiply-add as two operations; their backward and double backward
passes are seen too, because the action is run under it. Everything else (filters by shifted additions, activations, optimisers,
cutting of patches) counts as nothing, so that a rate is a lower bound of what was computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from normscape.benchmark.timing import Action, Timing, measure

PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices, by type of device: large enough that nothing but arithmetic counts."""


def count_operations(action: Action) -> int:
    """Floating-point operations of one call, which is made here; grouped convolutions' backward passes are counted too high."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        action()
    return int(counter.get_total_flops())


class _NoModules(ModuleTracker):
    """In place of torch's tracker: its hooks on modules do not bear `autograd.grad` towards images, which R1 needs."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *error: object) -> None: ...


def matrix_product(device: torch.device, repeats: int) -> tuple[int, int, Timing]:
    """Multiply two square float32 matrices, with the number formats that convolutions may use on this device.

    Returns:
        Side, operations and time of one product.
    """
    side = PRODUCT_SIDES.get(device.type, PRODUCT_SIDES["cpu"])
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    result = torch.empty_like(a)
    with _as_convolutions():
        timing = measure({"product": lambda: torch.mm(a, b, out=result)}, device=device, repeats=repeats)["product"]
    return side, 2 * side**3, timing


@contextmanager
def _as_convolutions() -> Iterator[None]:
    """On NVIDIA's GPUs, convolutions may round float32 factors to TF32 and matrix products may not, as torch has it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
