"""Figures read and compared; nothing here trains.

paper        the published figures
predictions  what a fine-tuning said of every dev row
statistics   means, intervals, best of n, paired differences
audit        what follows from the published figures
costs        tokens, FLOPs, hours and energy of a study
"""
