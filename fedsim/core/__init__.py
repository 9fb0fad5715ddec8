"""What every other room builds on: it knows no adversary, no truth and no Flower."""
