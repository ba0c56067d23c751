"""Makes bundles: knows torch, transformers and onnx; never imports runners."""
