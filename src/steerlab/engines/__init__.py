"""Engines run models. Each imports its own framework only when it is asked for."""
