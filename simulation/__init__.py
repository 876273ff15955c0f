"""The deterministic simulator: the same handlers under one seeded scheduler, with every fault."""
