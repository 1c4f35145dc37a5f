"""Atomic file writes, JSON-lines files with one line per run, and locks."""
