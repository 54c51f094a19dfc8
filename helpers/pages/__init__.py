"""Tables, figures and the book.

view         one run as the pages read it
comparisons  every pair of its checkpoints
tables       DataFrames of a run, and how a page shows one
beside       an encoder from elsewhere beside the others
plots        figures
build        the pages built from a run
verify       from a run's files back to its figures
"""
