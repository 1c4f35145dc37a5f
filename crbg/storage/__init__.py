"""Atomic files, files with one line for each run, and locks."""
