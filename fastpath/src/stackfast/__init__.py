"""The fast path: plain requests of MLflow's hottest routes, answered by one SQL statement each.

It only ever gives plain successes. Whatever is not plainly simple is "not mine" (418): nothing
was done, and nginx hands the untouched request to MLflow, whose answer and errors then count.
"""
