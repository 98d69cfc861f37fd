"""`python -m firstdraft.cli`."""

from firstdraft.cli import main

main()
