"""Metrics, suites of cases and replay."""
