"""Layouts that other tools load; one file per layout."""
