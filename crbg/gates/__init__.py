"""Gates on frozen weights, and how a model is given them."""
