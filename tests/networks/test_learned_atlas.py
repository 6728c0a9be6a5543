"""The learned atlas: a patch sees the window of the volume that lies at its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.configio import validate_config
from normscape.errors import ConfigError
from normscape.networks.controller import EncodedController
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator
from normscape.networks.learned_atlas import LearnedAtlas


def _atlas() -> LearnedAtlas:
    """10 voxels of 2 mm from one end of the places to the other, windows of side 4."""
    torch.manual_seed(0)
    return LearnedAtlas(3, 5, 1, side=4, spacing=2.0, low=-10.0, high=10.0)


def test_places_on_voxels_see_the_volume_itself() -> None:
    """x, y, z of a place are the last, the second and the first axis of the array; the ends of the range lie inside."""
    atlas = _atlas()
    place = torch.tensor([[-10.0, -10.0, -10.0], [10.0, 10.0, 10.0], [-8.0, -4.0, 2.0]]) / 10
    window = atlas.window(place, atlas.volume)
    assert window.shape == (3, 3, 4, 4, 4)
    torch.testing.assert_close(window[0], atlas.volume[:, :4, :4, :4])
    torch.testing.assert_close(window[1], atlas.volume[:, 10:14, 10:14, 10:14])
    torch.testing.assert_close(window[2], atlas.volume[:, 6:10, 3:7, 1:5])


def test_between_voxels_the_window_is_blended_and_knows_its_slope() -> None:
    """Half a voxel along x: the mean of two windows. The gradient of the place is the difference of the two, per step."""
    atlas = _atlas()
    place = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    window = atlas.window(place / 10, atlas.volume)
    near, far = atlas.volume[:, 5:9, 5:9, 5:9], atlas.volume[:, 5:9, 5:9, 6:10]
    torch.testing.assert_close(window[0], (near + far) / 2)
    (gradient,) = torch.autograd.grad(window.sum(), place)
    torch.testing.assert_close(gradient[0, 0], (far - near).sum() / 2.0)


def test_overlapping_windows_agree_on_what_they_share() -> None:
    """Two patches one voxel apart see the same voxels where both lie: what is drawn there belongs to the place."""
    atlas = _atlas()
    one, other = atlas.window(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.2]]), atlas.volume)
    torch.testing.assert_close(one[:, 1:], other[:, :-1])


def test_a_place_beyond_the_range_counts_as_its_end() -> None:
    """So random latents, whose places nobody limits, see something."""
    atlas = _atlas()
    beyond, end = atlas.window(torch.tensor([[3.0, -7.0, 0.1], [1.0, -1.0, 0.1]]), atlas.volume)
    assert torch.equal(beyond, end)


def test_an_encoded_controller_puts_the_exact_place_into_the_style(toy_brain_config: Callable[..., Config]) -> None:
    """Whatever the mapping makes of a place: its style's first coordinates are the place, and the image follows it."""
    config = toy_brain_config(generator={"atlas_channels": 2})
    torch.manual_seed(0)
    generator, encoder = Generator.from_config(config), Encoder.from_config(config)
    position = config.attributes[2]
    value = torch.tensor([[-80.0, 0.0, 40.0], [80.0, 80.0, -80.0]])
    style = EncodedController.of(position, config, encoder, generator)(value)
    torch.testing.assert_close(style[:, :3], value / 80)
    own = encoder.values["position"](value)
    torch.testing.assert_close(style[:, 3:], generator.mapping.stack("position", own)[:, 3:])
    styles = torch.randn(1, generator.latent_dim).repeat(2, 1)
    where = generator.place_slice
    assert where is not None
    styles[:, where] = style[:, :3]
    assert generator.atlas is not None
    expected = generator.atlas(style[:, :3], styles)
    assert (expected[0] - expected[1]).abs().max() > 0
    with_volume = generator.synthesize(styles)
    atlas, generator.atlas = generator.atlas, None
    torch.testing.assert_close(with_volume - generator.synthesize(styles), expected)
    generator.atlas = atlas


def test_every_patch_has_its_own_window(toy_brain_config: Callable[..., Config]) -> None:
    """A patch generated alone equals the same one among others."""
    config = toy_brain_config(generator={"atlas_channels": 2})
    torch.manual_seed(0)
    generator = Generator.from_config(config)
    z = torch.randn(4, generator.latent_dim)
    torch.testing.assert_close(torch.cat([generator(row) for row in z.split(1)]), generator(z))


def test_whole_scans_all_see_the_same_window(toy_whole_config: Callable[..., Config]) -> None:
    """The volume is as large as an image, and without an attribute that is the position every style sees all of it."""
    torch.manual_seed(0)
    generator = Generator.from_config(toy_whole_config())
    assert generator.atlas is not None
    assert generator.place_slice is None
    side = generator.atlas.side
    window = generator.atlas.window(torch.zeros(2, 3), generator.atlas.volume)
    for part in window:
        assert torch.equal(part, generator.atlas.volume[:, :side, :side, :side])
    styles = generator.mapping(torch.randn(2, generator.latent_dim))
    before = generator.synthesize(styles)
    with torch.no_grad():
        generator.atlas.volume[:, 3, 4, 5] += 1
    changed = (generator.synthesize(styles) - before).abs().amax((0, 1)) > 0
    assert changed.nonzero().tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("source", ["brain", "chairs"])
def test_an_atlas_needs_positions(
    source: str, toy_config: Callable[..., Config], toy_brain_config: Callable[..., Config]
) -> None:
    """Without an attribute that says where a patch lies there is no volume to look into."""
    config = toy_brain_config() if source == "brain" else toy_config()
    settings = config.model_dump(mode="json")
    settings["generator"]["atlas_channels"] = 2
    if source == "brain":
        settings["attributes"] = settings["attributes"][:2]
    with pytest.raises(ConfigError, match=r"generator\.atlas_channels: needs dims 3 and an attribute with 3 components"):
        validate_config(settings)
