"""Tables, figures and the book."""
