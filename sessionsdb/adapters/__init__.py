"""Keep the sessions of agent frameworks in this database, one module for each framework.

Each module needs its framework, an extra of this package, and is imported by its own name::

    from sessionsdb.adapters.openai_agents import Session

An adapter takes a ``SessionsDB``, an ``AsyncEngine`` or a URL: see ``handles.py``. It marks its
sessions with the form of their messages: see ``forms.py``.
"""
