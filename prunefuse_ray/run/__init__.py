"""One run: the loop over its steps, what each phase does, and the ledger that makes it durable."""
