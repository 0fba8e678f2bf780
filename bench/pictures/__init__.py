"""The figures of the documentation: a module each, with ``measure`` and ``draw``.

``measure(size)`` returns the data as plain JSON values, ``draw(data)`` a matplotlib ``Figure``.
``bench.figures`` is the command.
"""
