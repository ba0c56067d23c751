"""Only what a config does not say by itself; one file per model family, discovered by name."""
