"""Reads checkpoints: where a model comes from, what its config says, its weights and its tokenizer."""
