"""What runs on a node: networks stacked over agents, distributions, actors and critics."""
