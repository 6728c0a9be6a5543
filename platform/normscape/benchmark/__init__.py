"""Benchmark: speed and memory of the parts that cost, as ratios measured in one run."""
