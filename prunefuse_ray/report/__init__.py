"""Pages: a view in, a string out. Knows neither Ray nor run directories."""
