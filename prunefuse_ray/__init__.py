"""PruneFuse on Ray: select samples with a pruned proxy, then fuse it into the dense network."""
