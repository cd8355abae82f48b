"""Prediction of a step's time on an H200 from the machine code of its kernels. Needs no GPU; __main__.py is the command."""
