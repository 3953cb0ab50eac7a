"""The floor: what the best code by hand would do for the same contract, over the bare driver.

The same rows in the same tables with all their columns, the same locks and fences, many callers
served by one statement. What it leaves out is what a package is for: checking arguments, encoding
messages, building values, retrying, settling lost answers, telemetry.
"""
