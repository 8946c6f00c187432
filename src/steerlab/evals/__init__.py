"""Measuring: what a steering does, and what it costs, with intervals and with what could not be judged."""
