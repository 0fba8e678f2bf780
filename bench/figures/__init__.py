"""The figures of the documentation: a module each, with ``measure`` and ``draw``.

``measure(dry_run)`` returns the data as plain JSON values, ``draw(data)`` a matplotlib ``Figure``.
``python -m bench.figures`` is the command.
"""
