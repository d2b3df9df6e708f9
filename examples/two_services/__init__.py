"""Two services that share nothing but what they say to each other: `python -m examples.two_services`."""
