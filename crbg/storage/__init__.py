"""Files that survive a crash, and locks."""
