"Marks for some of the cases of a test."
import pytest


def slow(*values):
    "A case that takes long."
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_are(names, cases):
    "The cases, those among `names` marked as slow."
    return [slow(case) if case in names else case for case in cases]
