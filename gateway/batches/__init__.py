"""Batches: many requests from one file. `lines` is what a line means, `run` one batch, `runner` finds them."""
