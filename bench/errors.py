"""Which failures does the benchmark explain to the person who runs it?"""


class BenchError(Exception):
    """What failed, on which path, why, and what to do; shown without a traceback."""
