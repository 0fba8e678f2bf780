"""``python -m rdkernels``: the same as the ``rdkernels`` command."""

from rdkernels.cli import main

if __name__ == "__main__":
    main()
