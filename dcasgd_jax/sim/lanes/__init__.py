"""The engine that computes the gradients of a wave in parallel on many devices."""
