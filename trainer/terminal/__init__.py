"""What a user reads on the terminal: progress, the summary of a run, and words that several commands use."""
