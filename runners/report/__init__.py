"""Writes a report: text for people, JSON for programs, HTML, Markdown and JUnit for the places where people look."""
