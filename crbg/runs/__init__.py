"""Execute one or many runs, from spec to record, and evaluate and verify finished runs."""
