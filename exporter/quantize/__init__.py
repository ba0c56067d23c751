"""Quantised weights: which, how, and what it costs in accuracy."""
