import os

from hypothesis import settings

# A busy machine is no failure; and what CI says of a change must not depend on the luck of a draw.
settings.register_profile("exploring", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "exploring")
