"""Shadow federations: the adversary repeats the whole federation on records that it owns."""
