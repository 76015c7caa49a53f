"""Parts of `tools/bake_open_head.py`, which builds the open default head from MakeHuman data."""
