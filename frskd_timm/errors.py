"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error in the user's input: settings, data, files or names.

    The message is one sentence that says what is wrong and how to fix it. Scripts print it without a traceback and exit
    with status 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without the full stop, or its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
