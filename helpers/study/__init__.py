"""The study as a user runs it.

cli       the command line, `small-bench`
jobs      what there is to do, and how far it is
grid      Snakemake does it, here or on a cluster
notebook  one notebook through papermill
prepare   what a notebook opened alone needs
score     an encoder from elsewhere: one command from a checkpoint to its row
publish   the book of an unfinished or a kept run, and what is kept
"""
