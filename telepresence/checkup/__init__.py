"""Checks of the machine for `telepresence doctor`: each probe yields findings with advice."""
