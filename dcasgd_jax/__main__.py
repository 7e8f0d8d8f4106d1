"""`python -m dcasgd_jax` is the program `dcasgd-jax`."""

import sys

from dcasgd_jax.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
