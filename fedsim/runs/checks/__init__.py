"""What only the data and the model can tell of a scenario, checked before any work starts."""
