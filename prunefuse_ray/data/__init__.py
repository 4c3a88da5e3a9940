"""Where samples come from: pools of every kind as one stream of (id, sample[, label]), and the labels known of them."""
