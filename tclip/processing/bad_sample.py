"""The error of one sample, which callers skip and count."""


class BadSample(ValueError):
    """One sample cannot be used; the message says which and why. Callers skip and count it."""
