"""The JSON API under ``/api/v1``: the verbs of the store and the broker.

A file of routes has one subject. Each route checks the rights of the caller, calls one verb, and
returns its value in the wire form of ``sessionsdb.types``. ``problems.py`` turns errors into
responses, ``access.py`` knows the caller.
"""
