"""Calibration text, its rendering, and the statistics one pass collects."""
