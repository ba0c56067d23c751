"""Tests of graph passes, each on a small graph."""
