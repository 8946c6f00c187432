"""`python -m steerlab` is `steerlab`."""

from .cli import main

main()
