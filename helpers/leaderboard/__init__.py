"""The leaderboard's entries.

submission  the form of an entry
check       whether an entry holds, by its own predictions
submit      an entry from finished records
ranking     order, ties, and who cannot be told apart
"""
