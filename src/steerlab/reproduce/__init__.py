"""The field's published claims, each with its locked configuration, and what a run of it gives beside the published figure."""
