"""Recorded and simulated datasets of other people as training samples; see training/datasets.md."""
