"""Graph passes: one per file, each a function on an onnx_ir model that says what it requires and ensures."""
