"""The error type for mistakes that the user can fix."""


class UserError(ValueError):
    """An error that the user can fix.

    The message names the bad value, the allowed ones and what to do next. The commands print it without a traceback
    and exit with code 2.
    """
