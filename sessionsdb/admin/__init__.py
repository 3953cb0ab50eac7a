"""Functions for operators: status, health checks, retention, backups, export and import.

They work on an open database and know nothing of the command line.
"""
