"""Plans of runs on TPUs that are not there, from the compiled program of their step."""
