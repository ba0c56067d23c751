"""Finds the first wrong layer, operator and position, and says whether the export or the engine is at fault."""
