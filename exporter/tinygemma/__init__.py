"""The tiny Gemma 4 checkpoint: configuration, story grammar, tokenizer and training."""
