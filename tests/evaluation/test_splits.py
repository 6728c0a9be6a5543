"""Roles: no subject has two, the same seed gives the same, and too few subjects are an error that says what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from normscape.config import Config
from normscape.errors import DataError
from normscape.evaluation.splits import HEALTHY, SYNTHETIC, TRAIN, assign_roles
from normscape.stages.core import run_stages
from normscape.stages.files import read_json
from normscape.stages.prepare import open_prepared

if TYPE_CHECKING:
    from tests.evaluation.conftest import Prepared


def roles_of(prepared: Prepared, **changes: object):
    """Roles, and the split of stage `prepare`."""
    config = prepared.config.model_copy(update={"evaluation": prepared.config.evaluation.model_copy(update=changes)})
    folder = prepared.experiment.prepared
    return assign_roles(config, folder, open_prepared(config, folder)), read_json(folder / "split.json")


def test_no_subject_has_two_roles(chairs: Prepared) -> None:
    """Training, both validations and the test together are all subjects, each once."""
    roles, split = roles_of(chairs)
    everybody = [*roles.train, *roles.healthy, *roles.synthetic, *split["test"]]
    assert sorted(everybody) == sorted(split["subjects"])
    assert len(set(everybody)) == len(everybody)
    assert [len(roles.of(role)) for role in (TRAIN, HEALTHY, SYNTHETIC)] == [24, 8, 8]
    assert roles_of(chairs)[0] == roles


def test_share_of_healthy_validation(chairs: Prepared) -> None:
    """The share is that of subjects; one subject stays on either side."""
    assert [len(roles_of(chairs, validation_share=share)[0].healthy) for share in (0.0, 0.25, 1.0)] == [1, 4, 15]


def test_images_of_a_role_are_of_its_subjects(chairs: Prepared) -> None:
    bench = chairs.bench
    assert set(bench.healthy_training().subject) == set(bench.roles.train)
    for role in (HEALTHY, SYNTHETIC):
        assert set(bench.validation(role).images.subject) == set(bench.roles.of(role))
    assert set(bench.locked("a test").images.subject).isdisjoint(
        {*bench.roles.train, *bench.roles.healthy, *bench.roles.synthetic}
    )


def test_brains_know_age_and_site(brains: Prepared) -> None:
    """Persons without a known age have no patches and so no role; two scans of a person are one subject."""
    roles, split = roles_of(brains)
    assert sorted([*roles.train, *roles.healthy, *roles.synthetic, *split["test"]]) == [f"p-{i}" for i in range(7)]
    people = brains.bench.people
    assert people["p-0"].age_years == pytest.approx(20.5)
    assert {people[f"p-{i}"].site for i in (0, 2)} == {"south"}


def test_too_few_subjects_name_the_fields(chairs: Prepared, toy_config: type) -> None:
    data = chairs.config.model_dump(mode="json")
    data["data"] |= {"train_subjects": 40, "test_subjects": 13}
    config = Config.model_validate(data | {"name": "few"})
    run = run_stages(config, chairs.runs, last="prepare")
    with pytest.raises(DataError, match=r"1 of 54 are left over. Lower data.train_subjects \(40\) or data.test_subjects \(13\)"):
        assign_roles(config, run.stages["prepare"], open_prepared(config, run.stages["prepare"]))
