"""Real images are rebuilt where they lie, and some of them from what is known alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.training.batches import draw_real
from normscape.training.gan import GanTrainer
from normscape.training.reconstruction import at_known_places, drop_codes

Make = Callable[..., Config]
MakeSamples = Callable[..., SampleSet]
CPU = torch.device("cpu")


def test_dropped_codes_keep_what_is_known(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """The chosen rows lose all that comes from the image; the other rows lose nothing."""
    config = toy_brain_config()
    trainer = GanTrainer(config, {}, CPU)
    assert trainer.encoder is not None
    z = trainer.encoder(*draw_real(toy_brain_samples(), config, 0))
    dropped = torch.arange(len(z)) % 3 == 0
    after = drop_codes(trainer.generator, z, trainer.encoder.seen, dropped)
    columns = torch.arange(z.shape[1])
    seen = torch.cat([columns[trainer.generator.subspace_slice(name)] for name in trainer.encoder.seen])
    known = torch.cat([columns[trainer.generator.subspace_slice(a.name)] for a in config.value_attributes])
    assert len(seen) + len(known) == z.shape[1]
    assert (after[dropped][:, seen] == 0).all()
    assert torch.equal(after[:, known], z[:, known])
    assert torch.equal(after[~dropped], z[~dropped])


def test_the_share_of_dropped_rows_changes_the_training_step(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """A share of 0 draws no random number, so that older runs are repeated exactly; a share of 1 leaves nothing of the image."""
    samples = toy_brain_samples()
    real, values = draw_real(samples, toy_brain_config(), 0)
    measured = {}
    for share in (0.0, 1.0):
        trainer = GanTrainer(toy_brain_config(gan={"code_dropout": share}), {}, CPU)
        random = torch.Generator().manual_seed(0)
        before = random.get_state()
        z = trainer._codes(real, values, random)
        assert torch.equal(random.get_state(), before) == (share == 0)
        measured[share] = z[:, trainer.generator.subspace_slice("identity")]
    assert (measured[0.0] != 0).any()
    assert (measured[1.0] == 0).all()


def test_the_mapping_learns_the_places_of_real_patches(toy_brain_config: Make, toy_brain_samples: MakeSamples) -> None:
    """Rebuilt rows lie exactly where their images do; how far the mapping is astray falls; random rows keep their places."""
    config, samples = toy_brain_config(gan={"warmup_steps": 60, "warmup_learning_rate": 0.01}), toy_brain_samples()
    trainer = GanTrainer(config, {}, CPU)
    real, values = draw_real(samples, config, 0, trainer.rows)
    where, known = trainer.generator.place_slice, values["position"] / 80
    assert where is not None
    styles = torch.randn(len(known) + 2, trainer.generator.latent_dim)
    placed, astray = at_known_places(trainer.generator, styles, values)
    torch.testing.assert_close(placed[2:, where], known)
    assert torch.equal(placed[:2], styles[:2])
    torch.testing.assert_close(astray, (styles[2:, where] - known).abs().mean())
    first = trainer.step(real, 0, values)["place_l1"]
    for step in range(1, 60):
        last = trainer.step(real, step, values)["place_l1"]
    assert last < 0.5 * first
