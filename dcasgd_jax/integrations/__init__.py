"""Flax models in the optax transformations and in the simulator; needs the extra `flax`."""
