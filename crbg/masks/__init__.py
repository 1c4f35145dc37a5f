"""Masks: what is kept, how it is chosen, and the controls that a mask has to beat."""
