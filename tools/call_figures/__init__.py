"""What is measured of a call, with the real daemon and a real Chromium; `tools/measure_call.py` is the command."""
