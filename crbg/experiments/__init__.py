"""Experiments without torch: specs, configuration, records, selection, estimates."""
