"""The one base of what a user can mend; the command line turns it into one sentence and exit code
2."""


class InputError(ValueError):
    """Whatever the user can mend: its text names the value, the rule and the remedy, in one
    sentence."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong type, which a user can mend like any other."""


class Refused(InputError):
    """Settings or data that the notebook turned down before its run had begun."""


class Diverged(InputError):
    """A training whose loss is no number any more: going on with it mends nothing."""
