"""Kinds of packages: one file each, found by its name, with a function ``find``; each knows where its graphs lie."""
