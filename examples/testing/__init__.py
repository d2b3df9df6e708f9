"""A box office with its tests: `python -m pytest examples/testing`."""
