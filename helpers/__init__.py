"""Small-Bench NLP: the code behind the notebooks, one module a stage."""
