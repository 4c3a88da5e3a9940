"""One network trained on labeled samples, on Ray Train: recipe, augmentation, checkpoints."""
