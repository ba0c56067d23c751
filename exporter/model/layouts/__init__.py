"""Cache layouts while tracing: one file per layout, found by its name, each with one class ``Cache``.

A layout's ports are in :mod:`exporter.contract.ports`, and the host's side of it in :mod:`runners.decode.play`.
"""
