"""Masks, top-k selection, and the control masks that a ticket is compared with."""
