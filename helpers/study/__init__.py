"""The command line, the jobs of a study, and what becomes of a finished run."""
