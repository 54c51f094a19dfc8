"""The leaderboard's entries.

submission  the form of an entry
check       whether an entry holds, by its own predictions
submit      an entry from finished records
page        the ranking
"""
