"""Many models of one architecture, trained one after the other in the processor's cache."""
