"""The released model as a service: keys, budgets, output policies, an audit log."""
