"""The models, and what of them is faster here.

registry      the models by name: architecture, objective, tokenizer, recipe; and sizes
flops         matrix-product FLOP of a token
disentangled  DeBERTa's attention without gathers
dropout       dropout from 16 random bits; attention by plain products on a CPU
last_layer    the last layer only at the tokens that are read
"""
