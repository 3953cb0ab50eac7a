"""The web page for people: what the agents do, as it happens.

Every page is rendered on the server. A page works without scripts, except for its live parts.
"""

from sessionsdb.web.pages.application import add_pages

__all__ = ["add_pages"]
