"""Trust that is measured: from scores and labels to probabilities, bounds and thresholds.

Pure functions over numpy arrays. Knows no Redis, no HTTP, no engine and no text: labels come in as figures.
"""
