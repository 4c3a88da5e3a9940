"""Pool and network to scores: Ray Data streams the pool through scoring actors."""
