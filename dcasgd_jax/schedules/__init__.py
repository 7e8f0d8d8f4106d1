"""Who pushes what and when: laws, protocols, faults; NumPy only."""
