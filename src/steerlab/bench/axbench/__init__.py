"""AxBench (https://arxiv.org/abs/2501.17148): does a direction detect a concept, and does it steer towards it?

`data` says what a set of concepts is, `pilot` and `folder` are two (the built-in model's own, and the published layout),
`writing` makes a third; `metrics` has every figure, `units` the pieces of a run, `run` keeps its journal, `board` makes the
leaderboard of it and `page` shows it.
"""
