"""Door 1: what operators ask, by RPC."""
