"""The one exception that means: the person at the keyboard can mend this."""


class UserError(ValueError):
    """Something the user can mend.

    The message names the bad value, the allowed ones and what to do next. Tools print it without a traceback and
    end with exit code 2.
    """
