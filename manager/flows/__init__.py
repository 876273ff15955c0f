"""Stories: each file takes one from its beginning to its end, one transaction a call."""
