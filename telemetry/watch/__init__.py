"""Watch: the latest values of runs and machines, for `/metrics`, alerts and screens."""
