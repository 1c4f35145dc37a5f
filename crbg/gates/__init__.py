"""Gates on frozen weights, and functions that attach them to a model."""
