"""The one exception that means 'the user can mend this'."""


class UserError(Exception):
    """A mistake in what the user gave: settings, data, files, names.

    The message is one sentence that names what is wrong and what would be right. Scripts print it without a
    traceback and exit with status 2.
    """
