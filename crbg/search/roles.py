"""Roles of the tensors that a search may change."""

# Roles of tensors that a method changes, each with its words for tables.
CHANGED_ROLES = {
    "trained": "weights",
    "redrawn": "weights redrawn",
    "flipped": "signs",
    "multiplied": "factors",
    "copied": "weights copied",
}
CODED_ROLES = {"flipped", "multiplied"}  # integer factors on the initial weights, which a ticket file contains
