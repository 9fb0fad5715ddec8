"""Ways to run the same ServerApp and ClientApp: in this process, under Ray, on many machines."""
