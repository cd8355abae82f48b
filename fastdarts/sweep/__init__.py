"""Grid of searches: one run for each combination of setting values, summarised in one table.

`python -m fastdarts.sweep` is in __main__; the combinations are in grid, their execution in jobs, the results in folder,
results and plot.
"""
