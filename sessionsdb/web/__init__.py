"""``sessionsdb serve``: the sessions of a database over HTTP. Needs the extra ``sessionsdb[web]``.

``api/`` has the JSON API, ``server.py`` serves it.
"""

from sessionsdb.web.server import application, serve

__all__ = ["application", "serve"]
