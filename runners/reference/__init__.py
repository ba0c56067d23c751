"""Reference values: recorded in the bundle, or computed by PyTorch now."""
