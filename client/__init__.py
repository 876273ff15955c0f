"""The operators' side: an RPC client and the `muster` command."""
