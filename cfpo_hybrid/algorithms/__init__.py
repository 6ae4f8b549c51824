"""Algorithms: policy losses, advantages, KL, aggregation and their metrics. Pure tensor mathematics."""
