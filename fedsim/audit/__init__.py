"""An empirical lower bound on a party's ε, beside what the accountant guarantees."""
