"""A grid of searches: every combination of the values of some settings is one run, and together they make one table.

`python -m fastdarts.sweep` is in __main__; what is run in grid, how in jobs, what came of it in folder, results and plot.
"""
