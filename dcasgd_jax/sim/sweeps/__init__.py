"""Many runs as one vectorised program."""
