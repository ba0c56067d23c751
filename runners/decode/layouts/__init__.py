"""The host's side of cache layouts: one file per layout, found by its name, each with one class ``Player``.

The graph's side is in :mod:`exporter.model.layouts`.
"""
