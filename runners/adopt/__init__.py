"""Adopts what other exporters wrote: reads a package, measures what it does, makes a bundle of its files untouched."""
