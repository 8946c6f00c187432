"""Published benchmarks, whole: their data, their protocol, their figures, with intervals and without a paid service."""
