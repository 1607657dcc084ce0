"""A procedural world with exact truth: shapes, renderer, event simulator, motion."""
