"""From documents and tasks to token ids, and from predictions to scores.

corpus     documents, from one of three sources
hub        what is read from the Hugging Face Hub
glue       the eight tasks: schema, splits, labels
synthetic  the embedded world
packing    documents cut into rows of token ids
tokenizer  vocabularies, and the corpus packed with them
metrics    one score a task
"""
