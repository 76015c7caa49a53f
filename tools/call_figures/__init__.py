"""Measurements of a call between the real daemon and a real Chromium; `tools/measure_call.py` is the command."""
