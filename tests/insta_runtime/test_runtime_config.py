"""Configuration to and from plain dictionaries: round trip, defaults, and values that are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from insta_runtime.config import AvatarConfig, LearnConfig, OccupancyConfig, WarpConfig, from_dict, to_dict
from insta_runtime.errors import UserError
from tests.support.small_person import SMALL


@pytest.mark.parametrize("config", [AvatarConfig(), SMALL, WarpConfig(cell=0.02)])
def test_round_trip_through_json(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_absent_has_its_default_and_whole_numbers_serve_as_real_ones() -> None:
    config = from_dict(AvatarConfig, {"occupancy": {"decay": 1}})
    assert config == AvatarConfig(occupancy=OccupancyConfig(decay=1.0))
    assert type(config.occupancy.decay) is float


@pytest.mark.parametrize(
    "values",
    [
        {"warp": {"cells": 0.01}},
        {"grid": {}},
        {"warp": 3},
        {"warp": None},
        [],
        {"warp": {"cell": "0.01"}},
        {"warp": {"cell": None}},
        {"warp": {"cell": 1.0}},
        {"warp": {"cell": 0.0}},
        {"warp": {"cell": -math.inf}},
        {"warp": {"cell": math.nan}},
        {"learn": {"rays": 512.0}},
        {"learn": {"rays": True}},
        {"learn": {"rays": 10**400}},
        {"learn": {"seed": -1}},
        {"learn": {"mask_weight": -0.5}},
        {"warp": {"canonical_jaw": -0.1}},
        {"radiance": {"features": 3}},
        {"radiance": {"colour_layers": 1}},
        {"warp": {"blend": "seams"}},
        {"warp": {"scale": 3}},
        {"learn": {"binary_matte": 1}},
        {"radiance": {"base": 128, "finest": 64}},
        {"occupancy": {"decay": 10**400}},
    ],
)
def test_what_no_configuration_has_is_refused_in_one_line(values: Any) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(AvatarConfig, values)
    assert "\n" not in str(caught.value)


def test_bounds_are_inclusive() -> None:
    assert from_dict(LearnConfig, {"rays": 64, "ema": 0.0}).rays == 64
    with pytest.raises(UserError, match=r"^rays must be a whole number between 64 and"):
        from_dict(LearnConfig, {"rays": 63})


def test_an_error_names_the_dotted_key_and_the_allowed_values() -> None:
    with pytest.raises(
        UserError, match=r"^avatar\.warp\.blend must be one of surface, neighbours, triangle, got 'seams'$"
    ):
        from_dict(AvatarConfig, {"warp": {"blend": "seams"}}, "avatar.")
    with pytest.raises(UserError, match=r"^unknown setting 'learn\.ray'"):
        from_dict(AvatarConfig, {"learn": {"ray": 1}})
