"""Settings of an avatar that learns and is drawn in no time: what tests of whole commands and calls begin with."""

SMALL_AVATAR = (
    "avatar.radiance.levels=2",
    "avatar.radiance.log2_entries=9",
    "avatar.radiance.hidden=16",
    "avatar.occupancy.resolution=16",
    "avatar.learn.rays=128",
    "avatar.learn.frames=1",
)
SMALL_AVATAR_OPTIONS = tuple(f"--set={setting}" for setting in SMALL_AVATAR)
