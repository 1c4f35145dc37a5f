"""One run, from its spec to its record, and many of them."""
