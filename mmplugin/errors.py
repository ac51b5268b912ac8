"""The error type for mistakes that the user can fix."""


class UserError(ValueError):
    """An error that the user can fix.

    The message names the bad value, the allowed ones and what to do next. The commands print it without a traceback
    and exit with code 2.
    """


def message_of(error: UserError) -> str:
    """Return the message of an error, without the traceback that a data-loading process adds to it."""
    text = str(error)
    return text.rpartition('UserError: ')[2].strip() if 'Original Traceback' in text else text
