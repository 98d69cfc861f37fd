"""Typed settings with their defaults in `default.yaml`. The one place that reads the environment."""
