"""Plays cases and conversations through a session: cache layouts, decoding loop, text generation, chat templates."""
