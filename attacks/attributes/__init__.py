"""Which value a hidden column has in a record that is otherwise known."""
