"""Many runs on Ray Tune, side by side, that share the work they have in common."""
