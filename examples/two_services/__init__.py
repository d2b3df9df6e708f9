"""Two services that share no code and no database, only what they publish: `python -m examples.two_services`."""
