"""The quick tracer: records the operators that a module calls; torch.export is used wherever it does not apply."""
