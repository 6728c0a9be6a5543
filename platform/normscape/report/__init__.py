"""The page of a run: the thesis's tables and figures next to the thesis's own numbers."""
