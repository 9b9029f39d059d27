"""Measurements, never tests: ratios taken side by side in one run, thread counts stated."""
