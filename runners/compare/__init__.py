"""The compare command: opens runners, plays cases, judges, and writes reports."""
