"""Experiments and the command line; needs `pip install "dcasgd-jax[commands]"`."""
