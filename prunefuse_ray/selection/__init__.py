"""Scores to selected samples, exactly and in bounded memory: top-k, set strategies over shards, random selection."""
