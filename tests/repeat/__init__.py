"""Repeats tests in fresh seeds, to count how often they fail with nothing wrong.

``python -m tests.repeat`` is the command, ``plugin`` what it adds to pytest.
"""
