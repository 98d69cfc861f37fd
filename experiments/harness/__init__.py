"""What the benchmarks share: the system as processes, a proxy before Redis, memory, and how results are reported."""
