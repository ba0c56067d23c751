"""Tests: one file per room, helpers beside them, and the mutants of graphs."""
