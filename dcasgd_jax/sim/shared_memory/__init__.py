"""Asynchronous shared memory: views whose blocks come from different times, and adversaries."""
