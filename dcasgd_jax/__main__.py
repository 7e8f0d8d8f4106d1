"""`python -m dcasgd_jax` is the program `dcasgd-jax`."""

from dcasgd_jax.commands.command_line import leave, main


def program() -> None:
    """Runs the program, and ends the process."""
    leave(main())


if __name__ == "__main__":
    program()
