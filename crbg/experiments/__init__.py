"""Specs, configuration, records, selection and estimates of experiments. Nothing here imports torch."""
