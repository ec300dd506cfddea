"""``python -m mitoflow.cli``."""

from mitoflow.cli import main

main()
