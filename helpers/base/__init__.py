"""What everything else stands on.

errors    what a user sees of a mistake: one line
files     written whole or not at all, hashed, and vouched for by a manifest
config    parameters of the stages, and profiles
machine   cores this process may use, memory of the machine
seeding   seeds that follow from names
progress  one line for the terminal, one for the notebook
text      text from outside, made safe for a page
"""
