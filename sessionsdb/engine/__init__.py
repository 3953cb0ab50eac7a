"""The database layer: engines, runners, batchers, notifiers and migrations.

It knows no sessions. What exists for one database only is in its folder, ``sqlite`` or
``postgresql``.
"""
