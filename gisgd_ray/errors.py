"""The one exception type a user is meant to read: a sentence that names what is wrong."""


class UserError(Exception):
    """Bad input or a fault outside the program; the message is one clear sentence.

    Command lines print the message alone (no traceback) and exit with status 2.
    """


class DataError(UserError):
    """A data file is missing or damaged; names the file, what was expected, how to supply it."""
