"""Errors that the command line shows as one line."""


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line and says what to do."""
