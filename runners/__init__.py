"""Executes bundles and judges what they compute; never imports the exporter's torch side."""
