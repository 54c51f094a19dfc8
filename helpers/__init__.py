"""What the notebooks call. An import may only point to a line below its own.

study        the command line, jobs and their state, notebooks executed, runs kept, models exported
pages        tables, figures, the book built
leaderboard  an entry: its form, its check, its making
score        published figures, predictions, statistics, audit, costs
train        the two training loops, objectives, batches, checkpoints, records
data, model  corpus, tasks, tokenizers, metrics; registry, attention, dropout
base         errors, files, parameters, seeds, progress, text
"""
