"""Execute runs from spec to record, one or many, and evaluate and verify finished runs."""
