"""The exception for errors that the user can fix."""


class UserError(Exception):
    """A mistake in what the user gave: settings, data, files, names.

    The message is one sentence that names what is wrong and what would be right. Scripts print it without a
    traceback and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of another error's message without a closing full stop; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
