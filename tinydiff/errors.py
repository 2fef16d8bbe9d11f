"""The two ways in which a run can end badly, told apart so that the command line can answer each as it deserves."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says why (exit status 2)."""


class RunFailed(RuntimeError):
    """The run itself failed, with good input: a loss that is not finite, a full disk (exit status 1)."""
