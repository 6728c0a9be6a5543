"""Several workers take the step that one worker takes on the same global batch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.layers import minibatch_deviation
from normscape.training.batches import draw_real
from normscape.training.communicator import Communicator, ProcessGroup, share
from normscape.training.gan import GanTrainer

PHASES = ("discriminator", "r1", "generator", "path length")


class Place(Communicator):
    """A rank among others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("count", "group", "size"), [(32, 4, 1), (32, 4, 2), (32, 4, 4), (16, 1, 8)])
def test_shares_are_disjoint_and_complete_and_hold_whole_groups(count: int, group: int, size: int) -> None:
    """Every row has one owner, and the minibatch deviation of a share is that of the global batch."""
    shares = [share(count, group, Place(rank, size)) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(count))
    x = torch.randn(count, 3, 4, 4)
    whole = minibatch_deviation(x, group)
    for rows in shares:
        torch.testing.assert_close(minibatch_deviation(x[rows], group), whole[rows])


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    """The message names the rows, the groups and the workers."""
    with pytest.raises(ValueError, match="8 rows in groups of 4 cannot be shared out evenly among 3 workers"):
        share(8, 4, Place(0, 3))


def _gradients(config: Config, samples: SampleSet, communicator: Communicator) -> dict[str, torch.Tensor]:
    """Gradients of every phase at the start, and the weights after three whole steps."""
    torch.manual_seed(7)
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    trainer = GanTrainer(config, auxiliaries, torch.device("cpu"), communicator)
    real, values = draw_real(samples, config, 0, trainer.rows)
    kept: dict[str, torch.Tensor] = {}

    def keep(phase: str, action: Callable[[], object], *networks: torch.nn.Module) -> None:
        for optimizer in (trainer.optimizer_g, trainer.optimizer_d, trainer.optimizer_e):
            assert optimizer is not None
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # the phases are compared at the same weights
        action()
        grads = [p.grad.flatten() for network in networks for p in network.parameters() if p.grad is not None]
        kept[phase] = torch.cat(grads).clone()

    assert trainer.encoder is not None
    keep("discriminator", lambda: trainer.discriminator_phase(real, 0), trainer.discriminator)
    keep("r1", lambda: trainer.r1_phase(real, 0), trainer.discriminator)
    keep("generator", lambda: trainer.generator_phase(0, real, values), trainer.generator, trainer.encoder)
    keep("path length", lambda: trainer.path_length_phase(0), trainer.generator)
    if trainer.augmentation is not None:
        kept["augmentation"] = torch.stack(list(trainer.augmentation.state().values()))
    return kept


def _worker(rank: int, size: int, folder: str, configs: dict[str, Config], samples: SampleSet) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    try:
        kept = {name: _gradients(config, samples, ProcessGroup()) for name, config in configs.items()}
        torch.save(kept, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_gradients_of_two_workers_equal_those_of_one(
    toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]
) -> None:
    """Every phase, on the same global batch with noise inputs, to 1e-5 of the gradient's norm; both workers agree bit for bit.

    With an augmented discriminator, too, whose probability changes by the signs that all workers have seen: exactly alike.
    """
    settings = {"batch_size": 16, "reconstruction_weight": 5.0}
    augmented = {"mode": "adaptive", "probability": 0.5, "interval": 1, "images_to_full": 200}
    configs = {"plain": toy_config(gan=settings), "augmented": toy_config(gan=settings | {"augmentation": augmented})}
    assert all(config.generator.noise for config in configs.values())
    samples = toy_samples()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_worker, args=(2, folder, configs, samples), nprocs=2, start_method="spawn")
        both = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = {name: _gradients(config, samples, Communicator()) for name, config in configs.items()}
    for name, expected in alone.items():
        first, second = (kept[name] for kept in both)
        assert tuple(expected)[:4] == PHASES
        for phase in PHASES:
            assert expected[phase].norm() > 0
            assert torch.equal(first[phase], second[phase]), (name, phase)
            assert (first[phase] - expected[phase]).norm() <= 1e-5 * expected[phase].norm(), (name, phase)
    for phase in ("discriminator", "r1"):
        assert not torch.equal(alone["plain"][phase], alone["augmented"][phase])
    state = alone["augmented"]["augmentation"]
    assert state[0] != 0.5
    assert all(torch.equal(kept["augmented"]["augmentation"], state) for kept in both)
