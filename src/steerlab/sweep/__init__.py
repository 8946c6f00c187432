"""Sweeps: concepts x methods x layers x seeds x strengths, journalled and resumable, on this machine or a Ray cluster."""
