"""Counts of workers as a person writes them, and which of them can share a configuration's batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from normscape.config import Config
from normscape.distributed.workers import Workers, check_batch, check_room, parse_count, sharing
from normscape.errors import UserError


def test_counts_and_ranges_are_read() -> None:
    """`2` and `1-8`; anything else is named in the message, with what was expected."""
    assert parse_count("2", "--workers") == (2, 2)
    assert parse_count(" 1-8 ", "--workers") == (1, 8)
    for wrong in ("", "0", "8-1", "two", "1-", "-3", "1.5"):
        with pytest.raises(UserError, match=r"--actors .*expected a number or a range"):
            parse_count(wrong, "--actors")


@pytest.mark.parametrize(("least", "most"), [(3, 3), (4, 8)])
def test_a_batch_that_cannot_be_shared_out_is_refused(toy_config: Callable[..., Config], least: int, most: int) -> None:
    """The message names the fields, the workers, and how many workers could."""
    with pytest.raises(UserError) as caught:
        check_batch(toy_config(), Workers(least, most))
    message = str(caught.value)
    assert message.startswith("gan.batch_size 8 in groups of 4 (discriminator.deviation_group), and its 1/2")
    assert f"among {least} workers; 1, 2 can" in message
    check_batch(toy_config(), Workers(2, 8))  # those that are too many will stand by


def test_most_workers_that_can_share_every_batch(toy_config: Callable[..., Config]) -> None:
    """The GAN's: whole deviation groups, and the path length's smaller batch; the auxiliary networks': two subjects each."""
    config = toy_config(gan={"batch_size": 24, "path_length_batch_shrink": 8})  # 6 columns; 3 images for the path length
    assert [sharing("gan", config, n) for n in (1, 2, 3, 4, 6, 7)] == [1, 1, 3, 3, 3, 3]
    without = toy_config(gan={"batch_size": 24, "path_length_batch_shrink": 8, "path_length_weight": 0.0})
    assert [sharing("gan", without, n) for n in (2, 4, 6, 7)] == [2, 3, 6, 6]
    assert config.attributes[0].auxiliary.batch_size // config.attributes[0].auxiliary.views_per_subject == 4
    assert [sharing("auxiliary", config, n) for n in (1, 2, 3, 4)] == [1, 2, 2, 2]


@pytest.mark.cluster
def test_a_ray_of_our_own_that_is_too_small_is_a_persons_error(
    toy_config: Callable[..., Config], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would wait for ever; a cluster may grow, and is waited for with a line on stderr."""
    config, workers = toy_config(), Workers(2, 2, gpus=1.0, cpus=3)
    with pytest.raises(UserError, match=r"2 workers need 6 CPUs \(4 there\) and 2 GPUs \(0 there\)"):
        check_room(config, workers, own=True)
    check_room(config, workers, own=False)
    assert "waiting for the cluster to grow" in capsys.readouterr().err
    check_room(config, Workers(4, 8), own=True)
