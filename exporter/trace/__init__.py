"""Traces the module and translates it to ONNX, in a process of its own."""
