"""Judges tensors: metrics, the gate, the float64 budget and the records of a report; numpy and the standard library."""
