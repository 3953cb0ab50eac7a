"""Reports: read the ``report_*`` views, and write their rows as text or pictures.

::

    async with SessionsDB("sqlite:///sessions.db") as db:
        report = await reports.read(db, "latency", since=reports.parse_since("7d"))
        frame = pandas.DataFrame(report.dicts())
"""

from sessionsdb.reports.catalogue import VIEWS, Column, View
from sessionsdb.reports.queries import Report, as_sql, parse_since, query, read

__all__ = ["VIEWS", "Column", "Report", "View", "as_sql", "parse_since", "query", "read"]
