"""The parties of a federation, as Flower clients."""
