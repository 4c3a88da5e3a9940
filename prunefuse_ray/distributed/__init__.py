"""What the cluster has, what its autoscaler could add, and one function run over many files in tasks."""
