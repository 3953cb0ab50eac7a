"""``sessionsdb serve``: the sessions of a database over HTTP. Needs the extra ``sessionsdb[web]``.

``api/`` has the JSON API, ``pages/`` the pages, ``server.py`` serves both, and MCP where asked.
"""

from sessionsdb.web.rates import Rates
from sessionsdb.web.server import application, serve

__all__ = ["Rates", "application", "serve"]
