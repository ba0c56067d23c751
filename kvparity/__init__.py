"""Exports decoder-only language models to ONNX with explicit caches, and proves what runtimes compute."""
