"""Batches: many requests from one file. `lines` reads lines, `run` carries one batch out, `runner` schedules runs."""
