"""Golden files for every language: calls as ONNX test data, and a replay that needs numpy and ONNX Runtime alone."""
